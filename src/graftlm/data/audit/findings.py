"""Findings on rows, with messages that say what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from graftlm.config import DataConfig
from graftlm.data.chat import ChatFormat
from graftlm.data.notes import NOTES
from graftlm.data.report import LoadReport
from graftlm.data.store import Examples
from graftlm.data.tokenise import Encoder

__all__ = ["Finding", "Severity", "by_notes", "template_findings", "text_findings"]

Severity = Literal["error", "warning", "info"]

_TOO_MANY = 0.1
"""If at least this share of rows is lost, it is an error."""


@dataclass(frozen=True)
class Finding:
    """One fact to know before training.

    An *error* means that training would not have the intended effect; a *warning* may be harmless.
    """

    kind: str
    severity: Severity
    count: int
    message: str
    places: tuple[str, ...] = ()


def by_notes(
    report: LoadReport, examples: Examples, config: DataConfig, encoder: Encoder
) -> list[Finding]:
    """Findings on rows: malformed, lost, empty, wrongly encoded, or templated twice."""
    found: list[Finding] = []

    def add(kind: str, severity: Severity, count: int, message: str, note: str = "") -> None:
        places = tuple(report.places.get(note or kind, ()))
        found.append(Finding(kind, severity, count, message, places))

    rows, read = max(1, report.rows), max(1, report.rows - report.malformed)
    if not report.rows:
        add("empty", "error", 0, "rows: there is nothing in this data")
    elif not len(examples):
        add("nothing_to_learn", "error", rows, "rows, and nothing to learn from in any of them")
    if report.malformed:
        add("malformed", "error", report.malformed, f"of {rows} rows cannot be used")
    if report.too_long:
        share = report.too_long / read
        add(
            "too_long",
            "error" if share > _TOO_MANY else "warning",
            report.too_long,
            f"rows ({share:.1%}) are longer than max_length={config.max_length} and are dropped; "
            "raise it, or set data.truncation to left, right or split",
            "long",
        )
    if report.truncated:
        side = "end of the answer" if config.truncation == "right" else "beginning of the prompt"
        message = f"rows are cut to max_length={config.max_length}: the {side} is lost"
        add("truncated", "warning", report.truncated, message, "long")
    if report.split:
        message = f"rows are split into windows of {config.max_length} tokens"
        add("split", "info", report.split, message, "long")
    if report.unsupervised:
        share = report.unsupervised / read
        add(
            "unsupervised",
            "error" if share > _TOO_MANY else "warning",
            report.unsupervised,
            "rows or windows are left out: no token in them is learned",
        )
    found += text_findings(report)
    for kind, note in NOTES.items():
        if report.notes[kind]:
            add(kind, note.severity, report.notes[kind], note.message)
    if report.unused:
        rows_with = max(report.unused.values())
        message = f"rows have columns that are not used: {report.columns_in_words()}"
        add("unused_columns", "info", rows_with, message)
    for line in report.sources:
        add("sources", "info", len(report.sources), line)
    return found + template_findings(report, config, encoder.format)


def text_findings(report: LoadReport) -> list[Finding]:
    """Answers without text, and texts to which a chat template was applied before."""
    found: list[Finding] = []
    read = max(report.rows, 1)
    if empty := report.notes["empty_answer"]:
        severity: Severity = "error" if empty > _TOO_MANY * read else "warning"
        message = "rows have an empty answer: teaches to say nothing"
        places = tuple(report.places.get("empty_answer", ()))
        found.append(Finding("empty_answer", severity, empty, message, places))
    if twice := report.notes["template_in_text"]:
        severity = "error" if twice > 0.5 * read else "warning"
        message = "rows hold marks of a chat template in their text: it would be applied twice"
        places = tuple(report.places.get("template_in_text", ()))
        found.append(Finding("template_in_text", severity, twice, message, places))
    return found


def template_findings(report: LoadReport, config: DataConfig, form: ChatFormat) -> list[Finding]:
    """Conflicts between template, tokenizer and data."""
    found: list[Finding] = []

    def add(kind: str, severity: Severity, count: int, message: str) -> None:
        found.append(Finding(kind, severity, count, message))

    chats, plain = report.kinds["chat"], report.kinds["completion"]
    if len(report.formats) > 1 or (chats and plain):
        names = ", ".join(f"{name} ({n})" for name, n in report.formats.most_common())
        rows = sum(report.formats.values())
        if chats and plain:
            add("mixed_formats", "warning", rows, f"rows are of several formats: {names}. The "
                "model will be asked by chat turns; data.format=chat lays all out so")  # fmt: skip
        else:
            add("mixed_formats", "info", rows, f"rows are of several formats: {names}")
    if plain and not chats and form.template not in ("plain",):
        add("plain_questions", "info", plain, "rows are trained as plain text, and the model will "
            "be asked in plain text: --set data.format=chat makes them questions and answers in "
            f"chat turns (template: {form.template})")  # fmt: skip
    if not chats:
        return found
    if form.prompt_differs:
        add("template_prompt", "warning", chats, "chats: the template's generation prompt is not "
            "how its answers begin, so generation starts unlike training")  # fmt: skip
    if form.replaces_own:
        add("template_mismatch", "warning", chats, f"chats are rendered by the built-in "
            f"{form.template} template, although the model brings its own")  # fmt: skip
    if form.template == "plain":
        add("template_plain", "info", chats, "chats are rendered without roles, as the model has "
            "no chat template; data.chat_template names others")  # fmt: skip
    if form.dated:
        add("template_date", "warning", chats, "chats: the template prints today's date, so the "
            "same rows are other tokens tomorrow, also when a run is resumed")  # fmt: skip
    if form.ends:
        first, last = (repr(end) if end else "no end token" for end in form.ends)
        add("template_ends", "warning", chats, f"chats: answers inside a chat end with {first}, "
            f"the last one with {last}")  # fmt: skip
    return found
