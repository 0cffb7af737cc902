"""The chat: both answers come in pieces, and who stops listening stops them."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import queue
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from graftlm.errors import GraftLMError
from graftlm.models.decoding.row import Ask, Row
from graftlm.serve.engine import Engine, Piece
from graftlm.serve.voices import TokenizerVoice
from graftlm.studio.answers import Answering
from graftlm.studio.app import create_app
from graftlm.studio.place import Place
from graftlm.studio.sides import Side
from graftlm.studio.talk import Question, Talk
from tests.oracles.byte_tokenizer import byte_tokenizer
from tests.studio.conftest import HOST, TOKEN, MakeRun

pytestmark = pytest.mark.xdist_group("studio")


def question(text: str = "say 7", **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": text}]
    return {"run": "tuned", "base": turns, "tuned": turns, "max_new_tokens": 12} | more


def lines_of(answer: Any) -> list[dict[str, Any]]:
    assert answer.status_code == 200
    return [json.loads(line) for line in answer.text.splitlines()]


def text_of(lines: list[dict[str, Any]], side: str) -> str:
    return "".join(line.get("text", "") for line in lines if line.get("side") == side)


@pytest.fixture
def tuned(letters_llama: Path, rows_file: Path, place: Place) -> Callable[..., Path]:
    """A run of a few steps with a large rate, so that base and tune answer differently."""
    from graftlm.config import load_run_config, parse_override
    from graftlm.training import run

    def train(method: str = "qlora", *more: str) -> Path:
        given = [f"method={method}", f"model.name={letters_llama}", f"data.train={rows_file}",
                 f"out={place.runs / 'tuned'}", "train.steps=4", "train.learning_rate=0.05",
                 "lora.rank=4", *more]  # fmt: skip
        run(load_run_config(None, [parse_override(one) for one in given]))
        return place.runs / "tuned"

    return train


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_both_answers_come_in_pieces_and_are_those_of_each_alone(
    client: TestClient, tuned: Callable[..., Path], letters_llama: Path, method: str
) -> None:
    import graftlm

    folder = tuned(method)
    first, *lines, last = lines_of(client.post("/api/chat", json=question()))
    assert first["loading"]
    assert first["command"].startswith(f"graftlm chat {folder} ")
    assert last == {"done": True}
    quantize = "nf4" if method == "qlora" else "none"
    wanted = {
        "base": graftlm.generate(str(letters_llama), "say 7", quantize=quantize, max_new_tokens=12),
        "tuned": graftlm.generate(str(folder), "say 7", max_new_tokens=12),
    }
    assert wanted["base"].text != wanted["tuned"].text
    for side, answer in wanted.items():
        assert text_of(lines, side) == answer.text
        [end] = [line for line in lines if line.get("side") == side and "reason" in line]
        assert (end["tokens"], end["reason"] == "stop") == (answer.tokens, answer.stopped)
    ends = [number for number, line in enumerate(lines) if "reason" in line]
    before = lines[: ends[0]]
    assert {line["side"] for line in before} == {"base", "tuned"}  # neither waits for the other
    assert len(before) > 4

    assert client.get("/api/chat").json() == {"run": "tuned"}
    again = lines_of(client.post("/api/chat", json=question()))
    assert not again[0]["loading"]
    assert text_of(again, "tuned") == wanted["tuned"].text
    assert client.delete("/api/chat").json() == {"run": None}


def test_base_of_a_run_through_its_merge_is_the_base(
    client: TestClient, tuned: Callable[..., Path], letters_llama: Path
) -> None:
    """Its merged weight is stored in the base while the adapter is on."""
    import graftlm

    folder = tuned("qlora", "lora.merge_aware=nf4")
    wanted = {
        "base": graftlm.generate(str(letters_llama), "say 7", quantize="nf4", max_new_tokens=12),
        "tuned": graftlm.generate(str(folder), "say 7", max_new_tokens=12),
    }
    for _ in range(2):
        lines = lines_of(client.post("/api/chat", json=question()))
        for side, answer in wanted.items():
            assert text_of(lines, side) == answer.text


def test_what_goes_wrong_is_the_last_line(client: TestClient, make_run: MakeRun) -> None:
    make_run("tuned")  # has no adapter
    for _ in range(2):  # the process is there for the next question
        first, last = lines_of(client.post("/api/chat", json=question()))
        assert "command" in first
        assert "adapter" in last["error"]
    assert client.post("/api/chat", json=question(run="no")).status_code == 404
    assert client.post("/api/chat", json=question(base=[])).status_code == 422


PROGRAM = """
import json, pathlib, sys
heard = pathlib.Path(sys.argv[1]) / "heard"
for line in sys.stdin:
    with heard.open("a") as file:
        file.write(line)
    asked = json.loads(line)
    def say(**told):
        print(json.dumps({"number": asked.get("number", asked.get("stop")), **told}), flush=True)
    if "stop" in asked:
        say(side="base", text="late")
    elif asked["base"][-1]["content"] == "end":
        sys.exit("out of <memory>")
    else:
        say(side="base", text="one")
        if asked["base"][-1]["content"] == "short":
            say(done=True)
"""


def heard(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "heard").read_text().splitlines()]


def test_who_leaves_stops_the_answers_and_the_next_question_is_answered(
    place: Place, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The application sees the end of the connection, as when the page presses Stop."""
    folder = make_run("tuned")
    monkeypatch.setattr("graftlm.studio.talk.PROGRAM", (sys.executable, "-c", PROGRAM))
    app = create_app(place, TOKEN, {HOST})

    async def ask(text: str, leave_after: int | None) -> list[dict[str, Any]]:
        body = json.dumps(question(text)).encode()
        said: list[dict[str, Any]] = []
        left = asyncio.Event()
        asked = iter([{"type": "http.request", "body": body}])

        async def receive() -> Any:
            for message in asked:
                return message
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            said.extend(json.loads(line) for line in message.get("body", b"").splitlines())
            if leave_after is not None and len(said) >= leave_after:
                left.set()

        headers = {"host": HOST, "authorization": f"Bearer {TOKEN}",
                   "content-type": "application/json"}  # fmt: skip
        scope = {
            "type": "http", "method": "POST", "path": "/api/chat", "query_string": b"",
            "asgi": {"spec_version": "2.3"},
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }  # fmt: skip
        await app(scope, receive, send)
        return said

    async def talk() -> None:
        said = await ask("long", 2)
        assert [line.get("text") for line in said] == [None, "one"]
        said = await ask("short", None)  # the late piece of the first is not part of it
        assert [line.get("text") for line in said] == [None, "one", None]
        assert said[-1] == {"done": True}
        assert heard(folder)[1] == {"stop": 1}
        assert [line.get("number") for line in heard(folder)] == [1, None, 2]
        assert "out of <memory>" in (await ask("end", None))[-1]["error"]

    asyncio.run(talk())


def test_chat_that_is_let_go_while_it_answers_says_so(
    place: Place, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graftlm.studio.talk.PROGRAM", (sys.executable, "-c", PROGRAM))
    folder = make_run("tuned")
    chat = Talk(place)

    async def talk() -> None:
        said = chat.answers(folder, Question.model_validate(question("long")))
        await said.__anext__()
        assert (await said.__anext__())["text"] == "one"
        await chat.close()
        with pytest.raises(GraftLMError, match="let go"):
            await said.__anext__()
        assert chat.state() == {"run": None}

    asyncio.run(talk())


class Slow:
    """A writer that gives a letter to each row when it is let: a for the base, b for the tune."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.letters = tokenizer.convert_tokens_to_ids(["a", "b"])
        self.rows: list[Row] = []
        self.let, self.cancelled = threading.Semaphore(0), threading.Event()

    @property
    def busy(self) -> bool:
        return bool(self.rows)

    def add(self, ask: Ask) -> Row:
        self.rows.append(Row(ask, self.tokenizer, 1000))
        return self.rows[-1]

    def step(self) -> list[Row]:
        self.let.acquire()
        for row in self.rows:
            row.take(self.letters[row.ask.adapter is not None], frozenset())
        done, self.rows = self.rows, [row for row in self.rows if row.reason is None]
        return done

    def cancel(self, row: Row) -> None:
        self.rows.remove(row)
        if not self.rows:
            self.cancelled.set()

    def fail(self, error: Exception) -> list[Row]:
        raise error

    def close(self) -> None:
        self.rows = []


def test_stopped_answers_are_no_longer_written() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    writer = Slow(tokenizer)
    engine = Engine(writer)
    voice = TokenizerVoice.of(tokenizer, None)
    tune = dataclasses.replace(voice, adapter="default")
    sides = {"base": Side(engine, voice), "tuned": Side(engine, tune)}
    told: queue.Queue[dict[str, Any]] = queue.Queue()
    asked = question("x", max_new_tokens=20, temperature=0.0, seed=0)

    answering = Answering(sides, asked | {"number": 5}, told.put)
    heard: set[str] = set()
    while heard != {"base", "tuned"}:
        writer.let.release()
        heard.add(told.get(timeout=30)["side"])
    answering.stop()
    while not writer.cancelled.wait(0.01):
        writer.let.release()  # the step that is under way
    while not told.empty():
        assert "text" in told.get()

    Answering(sides, asked | {"number": 6}, told.put)
    writer.let.release(100)
    lines = list(iter(lambda: told.get(timeout=30), {"number": 6, "done": True}))
    engine.close()
    assert {line["number"] for line in lines} == {6}
    assert (text_of(lines, "base"), text_of(lines, "tuned")) == ("a" * 20, "b" * 20)
    assert [line["tokens"] for line in lines if "reason" in line] == [20, 20]


def test_a_side_that_waits_for_the_other_is_timed_from_its_own_beginning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter((0.0, 3.0, 5.0))
    counter = types.SimpleNamespace(perf_counter=lambda: next(clock))
    monkeypatch.setattr("graftlm.studio.answers.time", counter)
    deliver: list[Callable[[Piece], None]] = []

    class Engines:
        def submit(self, _: Any, told: Callable[[Piece], None]) -> Callable[[], None]:
            deliver.append(told)
            return lambda: None

    class Asked:
        engine, in_turn = Engines(), True

        def ask(self, *_: Any) -> None:
            return None

    told: list[dict[str, Any]] = []
    one: Any = Asked()
    Answering({"base": one, "tuned": one}, {"number": 1, "base": [], "tuned": []}, told.append)
    for tell in deliver:
        tell(Piece("", "stop", 4, 0, None))
    assert [line["seconds"] for line in told if "reason" in line] == [3.0, 2.0]
