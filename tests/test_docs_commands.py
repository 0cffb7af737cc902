"""The pages' commands are run as they are printed, on a tiny model, in the order of the page.

A block with a title is the file of that name. Commands that take minutes or wait for a user
(`PARSED`) are only parsed, as are those of the pages without files of their own.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from graftlm.cli.app import app
from tests.exporting.test_gguf import saved_base
from tests.exporting.test_other_targets import GEMMA3_FIRST, with_template

DOCS = Path(__file__).parent.parent / "docs"
README = DOCS.parent / "README.md"
PAGES = sorted(DOCS.rglob("*.md"))
PARSED = {"demo", "doctor", "serve", "studio", "chat"}
ON_ONE_PAGE = {"compare": "compare-methods", "plan": "too-little-memory"}
"""Commands of tens of seconds, and the page that runs them."""
RUN = sorted(
    page
    for page in PAGES
    if re.search(r'^```\w+ title="', page.read_text(encoding="utf-8"), re.MULTILINE)
)
FENCE = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str]]:
    """The blocks of a page: the title, empty without one, and the text."""
    text = page.read_text(encoding="utf-8")
    return [(title or "", body) for _, title, body in FENCE.findall(text)]


def commands(body: str) -> list[list[str]]:
    """The words of each command of graftlm in a block; ``\\`` goes on in the next line."""
    lines = body.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if re.match(r"graftlm [a-z]", line)]


def parsed(words: list[str]) -> None:
    """Look up the command that ``words`` begin with, and each of its options."""
    known_commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert words[0] in known_commands, f"no command {words[0]}"
    command = known_commands[words[0]]
    known = {name for parameter in command.params for name in parameter.opts}
    known |= {name for parameter in command.params for name in parameter.secondary_opts}
    for word in words[1:]:
        if word.startswith("--"):
            assert word.partition("=")[0] in known | {"--help"}, f"{words[0]} has no {word}"


@pytest.mark.parametrize("page", [*PAGES, README], ids=lambda page: page.stem)
def test_every_command_on_a_page_exists_with_its_options(page: Path) -> None:
    for _, body in blocks(page):
        for words in commands(body.replace("|", " ").replace("…", "")):
            parsed(words)


def test_a_wrong_option_is_noticed() -> None:
    with pytest.raises(AssertionError, match="train has no --speed"):
        parsed(["train", "--speed", "9"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "model"
    return saved_base(folder, "llama", with_template(GEMMA3_FIRST))


@pytest.mark.parametrize("page", RUN, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_the_commands_of_a_page_run_in_its_order(
    page: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = 0
    for title, body in blocks(page):
        if title:
            (tmp_path / title).write_text(body, encoding="utf-8")
            continue
        for words in commands(body):
            if words[0] in PARSED or ON_ONE_PAGE.get(words[0], page.stem) != page.stem:
                continue
            words = [str(model) if word == "gemma-3-270m" else word for word in words]
            done = CliRunner().invoke(app, words)
            assert done.exit_code == 0, f"{shlex.join(words)}\n{done.output}\n{done.exception!r}"
            ran += 1
    assert ran or {words[0] for _, body in blocks(page) for words in commands(body)} == {"compare"}
