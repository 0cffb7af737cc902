"""What the page is told: files, commands, jobs, runs and their curves."""

from __future__ import annotations

import json
import math
import shlex
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from typer.main import get_command

from graftlm.cli import app as cli
from graftlm.models.builtin import MODELS
from graftlm.studio.jobs import Jobs
from graftlm.studio.place import BUILT_IN, Place
from tests.studio.conftest import MakeRun, write_rows

CSV = "câu hỏi,answer,note\nxin chào,chào bạn,<b>x</b>\n".encode()


def test_built_in_models_are_those_of_the_package() -> None:
    assert set(BUILT_IN) == set(MODELS)


def test_columns_of_an_uploaded_file(client: TestClient) -> None:
    name = client.put("/api/uploads/hỏi đáp.csv", content=CSV).json()["name"]
    assert name == "hỏi đáp.csv"
    assert [one["name"] for one in client.get("/api/uploads").json()] == [name]
    found = client.get(f"/api/uploads/{name}/columns").json()
    assert found["columns"] == ["câu hỏi", "answer", "note"]
    assert found["first"]["note"] == "<b>x</b>"
    assert client.delete(f"/api/uploads/{name}").status_code == 200
    assert client.get("/api/uploads").json() == []


def asked_of(kind: str) -> dict[str, Any]:
    rows = {"upload": "a.csv", "prompt": "câu hỏi", "completion": "answer", "max_length": 64}
    model = {"model": "gemma-3-270m", "rows": rows}
    return {
        "check": {"kind": "check", **model},
        "plan": {"kind": "plan", **model, "memory": "4GB", "rank": 8, "batch_size": 2},
        "train": {
            "kind": "train", **model, "run": "new", "method": "qlora", "steps": 3, "epochs": 2,
            "learning_rate": 1e-3, "rank": 4, "batch_size": 2, "seed": 1, "eval_steps": 2,
            "save_steps": 2, "gradient_checkpointing": True, "embeddings": "int8",
            "micro_batch_tokens": 0, "memory": "4GB",
        },
        "resume": {"kind": "resume", "run": "first", "steps": 9},
        "forms": {"kind": "forms", "run": "first"},
        "merge": {"kind": "merge", "run": "first", "name": "merged", "to": "nf4"},
        "export": {"kind": "export", "run": "first", "name": "out", "to": "ollama",
                   "quantization": "q8_0"},
    }[kind]  # fmt: skip


@pytest.mark.parametrize("kind", ["check", "plan", "train", "resume", "forms", "merge", "export"])
def test_every_request_is_a_command_of_the_command_line(
    client: TestClient, make_run: MakeRun, kind: str
) -> None:
    """The line parses with the real command line: each flag exists and takes the value."""
    make_run("first")
    client.put("/api/uploads/a.csv", content=CSV)
    line = client.post("/api/commands", json=asked_of(kind)).json()["command"]
    program, name, *words = shlex.split(line)
    assert program == "graftlm"
    command = get_command(cli.app).commands[name]  # type: ignore[attr-defined]
    parsed = command.make_context(name, list(words))
    for assignment in parsed.params.get("set_") or []:
        from graftlm.config import load_run_config, parse_override

        load_run_config(None, [parse_override(assignment)])


def wait_for(jobs: Jobs, id: str) -> dict[str, Any]:
    for _ in range(600):
        found = jobs.described(jobs.one(id))
        if found["state"] != "running":
            return found
        time.sleep(0.05)
    raise AssertionError("the job did not end")


def test_job_outlives_the_server_that_started_it(place: Place) -> None:
    """A second server, which knows the folder alone, tells the same of a job."""
    good = Jobs(place).start("x", ["--version"])
    bad = Jobs(place).start("x", ["check", "no.csv", "--model", "no-such", "--json"])
    anew = Jobs(place)
    assert {job.id for job in anew.all()} == {good.id, bad.id}
    assert wait_for(anew, good.id)["code"] == 0
    ended = wait_for(anew, bad.id)
    assert (ended["state"], ended["code"]) == ("failed", 2)
    assert "no-such" in ended["said"]
    assert ended["command"] == "graftlm check no.csv --model no-such"


def test_job_whose_process_is_gone_was_killed(place: Place) -> None:
    jobs = Jobs(place)
    job = jobs.start("x", ["--version"])
    wait_for(jobs, job.id)
    folder = place.jobs / job.id
    (folder / "exit.json").unlink()
    for _ in range(200):  # the process around the command ends after it wrote the exit code
        if Jobs(place).state(job) != "running":
            break
        time.sleep(0.05)
    assert Jobs(place).state(job) == "killed"
    process = json.loads((folder / "process.json").read_text())
    process["around"]["pid"] = 1  # a number that has gone to another process
    (folder / "process.json").write_text(json.dumps(process))
    assert Jobs(place).state(job) == "killed"


def test_unknown_job(client: TestClient) -> None:
    for id in ("no", "..", "20260101-000000-00000000"):
        assert client.get(f"/api/jobs/{id}").status_code == 404


def test_runs_of_a_comparison_are_found_too(client: TestClient, make_run: MakeRun) -> None:
    make_run("first")
    make_run("cmp/runs/lora-16", finished=False)
    make_run("exports/not-a-run")
    found = {one["name"]: one for one in client.get("/api/runs").json()}
    assert set(found) == {"first", "cmp/runs/lora-16"}
    assert found["first"]["state"] == "finished"
    assert found["cmp/runs/lora-16"]["state"] == "paused"
    assert found["first"]["step"] == found["first"]["steps"] == 5


def test_finished_run_with_more_steps_is_not_finished(
    client: TestClient, make_run: MakeRun
) -> None:
    write_rows(make_run("first"), range(6, 8))
    assert client.get("/api/runs").json()[0]["state"] == "paused"


def test_unreadable_run_is_listed_with_its_error(client: TestClient, make_run: MakeRun) -> None:
    (make_run("first") / "config.yaml").write_text("train: [", encoding="utf-8")
    found = client.get("/api/runs").json()[0]
    assert found["state"] == "unreadable"
    assert "config.yaml" in found["error"]


def curves(client: TestClient, name: str = "first") -> dict[str, Any]:
    found: dict[str, Any] = client.get("/api/runs/curves", params={"run": name}).json()[0]
    return found["curves"]


def test_curves_follow_a_file_that_grows(client: TestClient, make_run: MakeRun) -> None:
    folder = make_run("first", finished=False)
    assert curves(client)["loss"] == [[s, 3.0 / s] for s in range(1, 6)]
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # half a line
    assert len(curves(client)["loss"]) == 5
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('ss": NaN, "tokens": 1, "tokens_per_second": 1.0}\n')
    write_rows(folder, range(7, 9))
    assert [x for x, _ in curves(client)["loss"]] == [1, 2, 3, 4, 5, 7, 8]
    replaced = folder / "new"
    replaced.write_text(
        json.dumps({"step": 1, "loss": 9.0, "tokens": 1, "tokens_per_second": 1}) + "\n"
    )
    replaced.rename(folder / "metrics.jsonl")  # as a resumed run does
    assert curves(client)["loss"] == [[1, 9.0]]


def test_curves_of_a_long_run_stay_short(client: TestClient, make_run: MakeRun) -> None:
    make_run("first", steps=10_000)
    found = curves(client)
    assert all(len(curve) <= 400 for curve in found.values())
    assert found["loss"][-1][0] > 9900
    assert math.isfinite(found["loss"][0][1])


def test_texts_of_both_languages_have_the_same_keys_and_values() -> None:
    import re

    from graftlm.studio.app import ASSETS

    def texts(language: str) -> dict[str, str]:
        path = ASSETS / "lang" / f"{language}.json"
        found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        return found

    english, vietnamese = texts("en"), texts("vi")
    assert list(english) == list(vietnamese)
    for key, text in english.items():
        assert sorted(re.findall(r"\{\w+\}", text)) == sorted(
            re.findall(r"\{\w+\}", vietnamese[key])
        ), key
        assert text.strip()
        assert vietnamese[key].strip()


def test_every_text_that_the_page_names_exists() -> None:
    import re

    from graftlm.planning.timeline import COMPONENTS
    from graftlm.studio.app import ASSETS

    english = json.loads((ASSETS / "lang" / "en.json").read_text(encoding="utf-8"))
    named = {f"part.{name}" for name in COMPONENTS}
    for script in ASSETS.rglob("*.js"):
        if script.parent.name != "uplot":
            named |= set(re.findall(r'\bt\("([^"]+)"', script.read_text(encoding="utf-8")))
    assert named <= set(english)
    computed = (
        "way.",
        "state.",
        "job.",
        "method.",
        "form.",
        "severity.",
        "finding.",
        "theme.",
        "figure.",
    )
    unused = {
        key for key in english if key not in named and not key.startswith((*computed, "part."))
    }
    texts = "".join(p.read_text(encoding="utf-8") for p in (ASSETS / "views").glob("*.js"))
    assert {
        key for key in unused if f'"{key}"' not in texts and key not in ("unit.seconds",)
    } <= set()


def test_nothing_of_the_page_comes_from_elsewhere() -> None:
    from graftlm.studio.app import ASSETS

    for path in ASSETS.rglob("*"):
        if path.suffix in (".js", ".css", ".html") and path.parent.name != "uplot":
            text = path.read_text(encoding="utf-8")
            assert "http://" not in text, path
            assert "https://" not in text, path
            assert "innerHTML" not in text, path
    assert "MIT" in (Path(ASSETS) / "uplot" / "LICENSE").read_text(encoding="utf-8")
