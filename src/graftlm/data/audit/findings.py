"""What was noticed while rows were read, said so that one can act on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from graftlm.config import DataConfig
from graftlm.data.report import LoadReport
from graftlm.data.store import Examples
from graftlm.data.tokenise import Encoder

__all__ = ["Finding", "Severity", "by_notes"]

Severity = Literal["error", "warning", "info"]

_TOO_MANY = 0.1
"""Share of rows from which a loss of rows is an error."""

_NOTES: dict[str, str] = {
    "ends_without_answer": "chats end without an answer; what follows the last answer is not used",
    "replacement_character": "rows hold U+FFFD: characters were lost when the file was converted",
    "mojibake": "rows hold UTF-8 that was read as another encoding, such as Ã© for é",
    "special_token_in_text": "rows hold the text of a special token, which becomes that token",
    "empty_prompt": "rows have no prompt",
}


@dataclass(frozen=True)
class Finding:
    """One thing to know before training.

    An *error* means that training would not do what was meant; a *warning* is worth a look.
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
    if empty := report.notes["empty_answer"]:
        severity: Severity = "error" if empty > _TOO_MANY * read else "warning"
        add("empty_answer", severity, empty, "rows have an empty answer: teaches to say nothing")
    if twice := report.notes["template_in_text"]:
        severity = "error" if twice > 0.5 * read else "warning"
        message = "rows hold marks of a chat template in their text: it would be applied twice"
        add("template_in_text", severity, twice, message)
    for kind, message in _NOTES.items():
        if report.notes[kind]:
            add(kind, "warning", report.notes[kind], message)
    return found + _template_findings(report, config, encoder)


def _template_findings(report: LoadReport, config: DataConfig, encoder: Encoder) -> list[Finding]:
    """What does not fit between template, tokenizer and data."""
    chats = sum(n for name, n in report.formats.items() if name not in ("completion", "text"))
    if not chats:
        return []
    found = []
    form = encoder.format
    if form.prompt_differs:
        found.append(
            Finding("template_prompt", "warning", chats, "chats: the template's generation prompt "
                    "is not how its answers begin, so generation starts unlike training")
        )  # fmt: skip
    if form.replaces_own:
        found.append(
            Finding("template_mismatch", "warning", chats, f"chats are rendered by the built-in "
                    f"{form.template} template, although the model brings its own")
        )  # fmt: skip
    if form.template == "plain":
        found.append(
            Finding("template_plain", "info", chats, "chats are rendered without roles, as the "
                    "model has no chat template; data.chat_template names others")
        )  # fmt: skip
    if len(report.formats) > 1:
        names = ", ".join(f"{name} ({n})" for name, n in report.formats.most_common())
        found.append(
            Finding("mixed_formats", "info", sum(report.formats.values()), f"rows are of several "
                    f"formats: {names}")
        )  # fmt: skip
    return found
