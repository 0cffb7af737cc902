"""What the server refuses: other hosts, other pages, missing tokens, names that lead elsewhere."""

from __future__ import annotations

import asyncio
import bz2
import gzip
import io
import json
import os
import socket
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from graftlm.errors import ConfigError
from graftlm.studio.app import create_app
from graftlm.studio.guard import HEADERS, Guard
from graftlm.studio.place import Place, kept_token
from graftlm.studio.runs import Runs
from graftlm.studio.serve import hosts_of
from tests.studio.conftest import HOST, TOKEN, MakeRun

ROUTES = [
    ("GET", "/api/machine"),
    ("GET", "/api/uploads"),
    ("PUT", "/api/uploads/a.csv"),
    ("GET", "/api/runs"),
    ("POST", "/api/jobs"),
    ("POST", "/api/chat"),
    ("GET", "/api/nothing"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("given", ["", "Bearer ", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN])
def test_interface_needs_the_token(client: TestClient, method: str, path: str, given: str) -> None:
    answer = client.request(method, path, headers={"authorization": given})
    assert answer.status_code == 401
    assert TOKEN not in answer.text


def test_page_needs_no_token_and_holds_none(client: TestClient) -> None:
    answer = client.get("/", headers={"authorization": ""})
    assert answer.status_code == 200
    assert TOKEN not in answer.text


@pytest.mark.parametrize("host", ["evil.example:7860", "127.0.0.1:7861", "127.0.0.1", ""])
def test_other_host_is_refused(client: TestClient, host: str) -> None:
    assert client.get("/api/machine", headers={"host": host}).status_code == 421
    assert client.get("/", headers={"host": host}).status_code == 421


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": f"https://{HOST}"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_request_of_another_page_is_refused(client: TestClient, headers: dict[str, str]) -> None:
    for method, path in ROUTES:
        assert client.request(method, path, headers=headers).status_code == 403


def test_own_page_may_ask(client: TestClient) -> None:
    headers = {"origin": f"http://{HOST}", "sec-fetch-site": "same-origin"}
    assert client.get("/api/machine", headers=headers).status_code == 200


def test_every_answer_forbids_foreign_scripts_and_frames(client: TestClient) -> None:
    for path in ("/", "/assets/app.js", "/api/runs", "/nothing", "/api/jobs/no"):
        answer = client.get(path)
        for name in HEADERS:
            assert name in answer.headers
        policy = answer.headers["content-security-policy"]
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "name",
    ["..", "../first", "/etc", "first/../../outside", "outside", "link", ".studio", "", "first\0"],
)
def test_run_outside_the_folder_is_unknown(
    client: TestClient, make_run: MakeRun, place: Place, tmp_path: Path, name: str
) -> None:
    make_run("first")
    outside = make_run("../outside")
    assert outside.resolve().parent == tmp_path
    (place.runs / "link").symlink_to(outside)
    assert client.get("/api/runs/curves", params={"run": name}).status_code == 404
    assert client.get("/api/runs/samples", params={"run": name}).status_code == 404
    assert client.post("/api/runs/stop", json={"run": name}).status_code == 404
    asked = {"kind": "merge", "run": name, "name": "merged"}
    assert client.post("/api/commands", json=asked).status_code == 404


@pytest.mark.parametrize(
    "path",
    ["/assets/../app.py", "/assets/%2e%2e/app.py", "/assets/..%2fapp.py", "/assets//etc/passwd"],
)
def test_assets_lead_nowhere_else(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    "name",
    ["..%2fa.csv", "%2e%2e", ".hidden.csv", "a%00.csv", "a%0a.csv", "a.exe", "a", "c%3aa.csv",
     "x" * 300 + ".csv", "a%5cb.csv", "config.yaml"],
)  # fmt: skip
def test_odd_file_name_is_refused_and_nothing_is_written(
    client: TestClient, place: Place, name: str
) -> None:
    answer = client.put(f"/api/uploads/{name}", content=b"a,b\n1,2\n")
    assert answer.status_code in (400, 404, 405)
    assert list(place.uploads.iterdir()) == []


@pytest.mark.parametrize(
    "model",
    ["/etc", "../x", "./x", "a/b/c", "", "~/x", "a/../b", "gemma-3-270m --debug", "x.gguf"],
)
def test_model_outside_the_chosen_folders_is_refused(client: TestClient, model: str) -> None:
    client.put("/api/uploads/a.csv", content=b"prompt,completion\na,b\n")
    asked = {"kind": "plan", "model": model, "rows": {"upload": "a.csv"}}
    assert client.post("/api/jobs", json=asked).status_code == 400


@pytest.mark.parametrize("upload", ["../first/config.yaml", "/etc/passwd", "no.csv", ""])
def test_rows_come_from_uploads_only(client: TestClient, make_run: MakeRun, upload: str) -> None:
    make_run("first")
    asked = {"kind": "check", "model": "gemma-3-270m", "rows": {"upload": upload}}
    assert client.post("/api/jobs", json=asked).status_code == 404


def test_settings_other_than_those_of_the_page_are_refused(client: TestClient) -> None:
    client.put("/api/uploads/a.csv", content=b"prompt,completion\na,b\n")
    asked = {"kind": "train", "model": "gemma-3-270m", "run": "x", "rows": {"upload": "a.csv"}}
    assert client.post("/api/commands", json=asked).status_code == 200
    for more in ({"set": "model.trust_remote_code=true"}, {"device": "cuda"}, {"out": "/tmp"}):
        assert client.post("/api/commands", json=asked | more).status_code == 422
    for run in ("../x", "a/b", "-x", ".x", "exports", "x" * 65, "a b"):
        assert client.post("/api/commands", json=asked | {"run": run}).status_code == 400


def test_column_name_cannot_become_another_setting(client: TestClient) -> None:
    client.put("/api/uploads/a.csv", content=b"prompt,completion\na,b\n")
    odd = 'x"}, train: /etc/passwd # '
    rows = {"upload": "a.csv", "prompt": odd}
    asked = {"kind": "check", "model": "gemma-3-270m", "rows": rows}
    command = client.post("/api/commands", json=asked).json()["command"]
    import shlex

    from graftlm.config import load_run_config, parse_override

    words = shlex.split(command)
    said = [words[at + 1] for at, word in enumerate(words) if word == "--set"]
    data = load_run_config(None, [parse_override(text) for text in said]).data
    assert data.columns == {"prompt": odd}
    assert data.train == ""


def test_file_over_the_limit_is_refused(client: TestClient, place: Place) -> None:
    declared = client.put("/api/uploads/a.csv", content=b"x" * 100_001)
    assert declared.status_code == 413
    undeclared = client.put("/api/uploads/a.csv", content=iter([b"x" * 60_000] * 2))
    assert undeclared.status_code == 413
    assert list(place.uploads.iterdir()) == []


def packed(kind: str, content: bytes) -> bytes:
    if kind == "gz":
        return gzip.compress(content)
    if kind == "bz2":
        return bz2.compress(content)
    if kind == "zst":
        import pyarrow as pa

        out = pa.BufferOutputStream()
        with pa.CompressedOutputStream(out, "zstd") as stream:
            stream.write(content)
        return bytes(out.getvalue())
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("sheet.xml", content)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["gz", "bz2", "zst", "xlsx"])
def test_archive_that_unpacks_to_more_than_the_limit_is_refused(
    client: TestClient, place: Place, kind: str
) -> None:
    name = "a.xlsx" if kind == "xlsx" else f"a.csv.{kind}"
    bomb = packed(kind, b"0" * 10_000_000)
    assert len(bomb) < 100_000
    assert client.put(f"/api/uploads/{name}", content=bomb).status_code == 413
    assert client.put(f"/api/uploads/{name}", content=bomb[:-10]).status_code in (400, 413)
    assert list(place.uploads.iterdir()) == []
    assert client.put(f"/api/uploads/{name}", content=packed(kind, b"a,b\n")).status_code == 200


def test_client_that_takes_no_answer_is_given_up() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def never(message: Any) -> None:
        await asyncio.Event().wait()

    guard = Guard(app, {HOST}, TOKEN, take_seconds=0.01)
    scope = {"type": "http", "path": "/", "headers": [(b"host", HOST.encode())]}
    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(guard(scope, never, never))  # type: ignore[arg-type]


def test_large_request_is_refused(client: TestClient) -> None:
    answer = client.post("/api/jobs", content=b" " * 2_000_000)
    assert answer.status_code == 413


def test_second_file_of_a_name_does_not_replace_the_first(client: TestClient) -> None:
    names = [client.put("/api/uploads/a.csv", content=b"a").json()["name"] for _ in range(3)]
    assert names == ["a.csv", "a-2.csv", "a-3.csv"]


def test_partial_files_of_a_killed_server_are_removed(place: Place) -> None:
    (place.uploads / ".0011.part").write_bytes(b"x")
    create_app(place, TOKEN, {HOST})
    assert list(place.uploads.iterdir()) == []


def test_process_that_a_copied_run_folder_names_is_not_touched(
    make_run: MakeRun, place: Place
) -> None:
    """`.running` may name any process; only one that has the run's lock open is the run's."""
    folder = make_run("first", finished=False)
    who = {"pid": os.getpid(), "host": socket.gethostname(), "since": "2026-01-01 00:00:00"}
    (folder / ".running").write_text(json.dumps(who), encoding="utf-8")
    (folder / ".lock").touch()
    runs = Runs(place)
    assert runs.described("first")["state"] == "paused"
    with (folder / ".lock").open("a"):
        assert runs.described("first")["state"] == "running"


def test_token_is_kept_for_this_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTLM_CACHE", str(tmp_path / "cache"))
    token = kept_token()
    assert len(token) >= 40
    assert kept_token() == token
    file = tmp_path / "cache" / "studio-token"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_text("short", encoding="ascii")
    with pytest.raises(ConfigError, match="holds no token"):
        kept_token()


def test_address_of_all_machines_is_no_name_of_this_one() -> None:
    assert hosts_of("0.0.0.0", 80, []) == {"127.0.0.1:80", "localhost:80"}
    assert hosts_of("10.0.0.5", 80, ["My.Host"]) >= {"10.0.0.5:80", "my.host:80"}
