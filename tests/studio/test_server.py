"""The server as a process: killed in the middle of a run, slow clients, many connections."""

from __future__ import annotations

import json
import signal
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.studio.browser import Server, ask, studio, until

pytest.importorskip("uvicorn", reason="the extra `studio` is not installed")
pytestmark = pytest.mark.xdist_group("studio")


def only_run(server: Server) -> dict[str, Any]:
    found: list[dict[str, Any]] = ask(server, "runs")
    return found[0] if found else {}


def test_run_goes_on_when_the_server_is_killed_and_is_found_again(
    tiny_llama: Path, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAFTLM_CACHE", str(tmp_path / "cache"))
    runs, models = tmp_path / "runs", ("--models", str(tiny_llama.parent))
    with studio(runs, *models) as server:
        ask(server, "uploads/rows.jsonl", rows_file.read_bytes(), "PUT")
        rows = {"upload": "rows.jsonl", "format": "plain", "eval_fraction": 0}
        asked = {"kind": "train", "model": "tiny-llama", "run": "long", "rows": rows}
        ask(server, "jobs", asked | {"method": "lora", "steps": 1_000_000, "rank": 2})
        until(lambda: only_run(server).get("step", 0) > 2)
        process = json.loads((runs / "long" / ".running").read_text(encoding="utf-8"))["pid"]
        server.end(signal.SIGKILL)
    assert psutil.pid_exists(process)
    again = Server(runs, *models)
    try:
        assert again.token == server.token  # a page that was open goes on, too
        found = only_run(again)
        assert (found["state"], found["steps"]) == ("running", 1_000_000)
        until(lambda: only_run(again)["step"] > found["step"])
        assert ask(again, "jobs")[0]["state"] == "running"
        ask(again, "runs/stop", {"run": "long"})
        until(lambda: only_run(again)["state"] == "paused")
        assert list((runs / "long" / "checkpoints").glob("step-*"))
        until(lambda: ask(again, "jobs")[0]["state"] == "failed")  # its exit code says: not the end
    finally:
        again.end()
    assert not psutil.pid_exists(process)


def raw(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def test_slow_and_many_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTLM_CACHE", str(tmp_path / "cache"))
    with studio(tmp_path / "runs") as server:
        silent = [raw(server) for _ in range(200)]
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(server, "machine")
        assert refused.value.code == 503
        refused.value.close()
        half = silent.pop()
        half.sendall(b"GET / HTTP/1.1\r\nHost: ")
        started = time.monotonic()
        assert half.recv(100) == b""  # closed, after the time for a head
        assert time.monotonic() - started < 30
        assert all(one.recv(1) == b"" for one in silent)
        for one in (*silent, half):
            one.close()
        assert until(lambda: ask(server, "machine"))["cores"]
