"""`graftlm check`: exit codes, JSON, the page."""

from __future__ import annotations

import json
import sys

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
