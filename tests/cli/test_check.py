"""`graftlm check`: exit codes, JSON, the page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from graftlm.cli import main


def run(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["graftlm", "check", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr()
    return int(stop.value.code or 0), said.out, said.err


def test_good_data_is_shown_and_exits_with_0(monkeypatch, capsys, rows_file, tiny_llama):
    code, out, _ = run(monkeypatch, capsys, rows_file, "--model", tiny_llama)
    assert code == 0
    assert "40 (40 completion)" in out
    assert "Ready to train." in out


def test_json_is_one_object_and_bad_data_exits_with_1(monkeypatch, capsys, tmp_path, tiny_llama):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n{broken\n')
    code, out, _ = run(monkeypatch, capsys, path, "--model", tiny_llama, "--json")
    result = json.loads(out)
    assert code == 1
    assert not result["ok"]
    assert [f["kind"] for f in result["findings"]] == ["malformed"]
    assert ":2: not valid JSON" in result["findings"][0]["places"][0]
    assert result["samples"][0]["pieces"] == [["<s>a\n", False], ["b</s>", True]]


def test_a_wrong_request_exits_with_2(monkeypatch, capsys, tmp_path, tiny_llama):
    code, _, err = run(monkeypatch, capsys, tmp_path / "no.jsonl", "--model", tiny_llama)
    assert code == 2
    assert "does not exist" in err


def test_the_page_shows_what_is_learned_and_escapes_it(monkeypatch, capsys, tmp_path, tiny_llama):
    path, page = tmp_path / "rows.jsonl", tmp_path / "check.html"
    path.write_text(json.dumps({"prompt": "<script>x</script>", "completion": "<b>"}) + "\n")
    run(monkeypatch, capsys, path, "--model", tiny_llama, "--html", page)
    text = page.read_text(encoding="utf-8")
    assert "<mark>&lt;b&gt;&lt;/s&gt;</mark>" in text
    assert "<script>" not in text


def test_rows_in_both_files_are_found(monkeypatch, capsys, rows_file, tmp_path, tiny_llama):
    held = tmp_path / "held.jsonl"
    held.write_text("".join(rows_file.read_text().splitlines(keepends=True)[:3]))
    code, out, _ = run(
        monkeypatch, capsys, rows_file, "--model", tiny_llama, "--eval-data", held, "--json"
    )
    [leak] = [f for f in json.loads(out)["findings"] if f["kind"] == "leakage"]
    assert code == 1
    assert leak["count"] == 3


def test_the_settings_are_those_of_training(monkeypatch, capsys, rows_file, tiny_llama):
    arguments = (rows_file, "--model", tiny_llama, "--json", "--samples", 0, "--max-length", 16)
    code, out, _ = run(monkeypatch, capsys, *arguments, "--set", "data.truncation=right")
    result = json.loads(out)
    assert result["truncated"] > 0
    assert max(result["length_percentiles"].values()) > 16
    assert code == 1  # cut answers do not end
    assert result["samples"] == []


def test_the_page_fits_a_phone_and_follows_the_systems_colours(
    monkeypatch, capsys, rows_file, tmp_path, tiny_llama
):
    """Values may wrap, only numbers may not; an empty bar is not drawn."""
    page = tmp_path / "check.html"
    run(monkeypatch, capsys, rows_file, "--model", tiny_llama, "--html", page)
    text = page.read_text(encoding="utf-8")
    facts = text[text.index("<table>") : text.index("<h2>Findings")]
    assert 'class="n"' not in facts
    assert "prefers-color-scheme: dark" in text
    assert "width: 0.0%" not in text


@pytest.mark.parametrize("kind", ["link", "folder", "device"])
def test_the_page_replaces_nothing_but_a_file(
    kind, monkeypatch, capsys, rows_file, tmp_path, tiny_llama
):
    page = tmp_path / "page.html"
    if kind == "link":
        (tmp_path / "precious").write_text("kept")
        page.symlink_to(tmp_path / "precious")
    elif kind == "folder":
        page.mkdir()
    else:
        page = Path("/dev/null")
    code, _, err = run(monkeypatch, capsys, rows_file, "--model", tiny_llama, "--html", page)
    assert code == 2
    assert "is a link, a folder or a device" in err
    assert page.is_symlink() == (kind == "link")
    assert page.is_dir() == (kind == "folder")


def test_escape_sequences_of_rows_do_not_reach_the_terminal(
    monkeypatch, capsys, tmp_path, tiny_llama
):
    path = tmp_path / "rows.jsonl"
    bad = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e"
    rows = [
        {"prompt": f"a{bad}", "completion": f"b{bad}", bad: "x"},
        {"messages": [{"role": bad, "content": "x"}]},
        {"prompt": f"a{bad} </s>", "completion": "c"},
        {bad: "x"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, out, err = run(monkeypatch, capsys, path, "--model", tiny_llama)
    assert "\\x1b[2J" in out
    for character in "\x1b\x07\x9b\u202e":
        assert character not in out + err
    words = ["train", "--model", tiny_llama, "--data", path, "--out", tmp_path / "run"]
    monkeypatch.setattr(sys, "argv", ["graftlm", *map(str, words)])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr()
    assert "malformed" in said.err
    assert "\x1b[2J" not in said.out + said.err


def test_pipes_of_a_shell_are_read(tiny_llama, rows_file):
    """`<(…)`, `/dev/stdin` and `-` give the rows that the file gives."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

    def hashes(words):
        script = "import sys; from graftlm.cli import main; sys.argv[0] = 'graftlm'; main()"
        shell = f'{sys.executable} -c "{script}" check {words} --json --model {tiny_llama}'
        done = subprocess.run(
            ["bash", "-c", shell], capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        return {k: v for k, v in result.items() if k != "data"}

    expected = hashes(str(rows_file))
    for words in (f"<(cat {rows_file})", f"/dev/stdin < {rows_file}", f"- < {rows_file}"):
        assert hashes(words) == expected
