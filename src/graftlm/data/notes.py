"""Notes on rows that can be trained on, with their messages.

`graftlm check` reports every kind with its first places. Training prints the kinds in which the
model does not learn the row exactly as given.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["NOTES", "Note"]


class Note(NamedTuple):
    """A kind of finding on rows.

    Attributes:
        severity: as in `audit.findings.Finding`.
        message: follows the number of rows.
        is_loss: whether a part of the row is not learned or is changed.
    """

    severity: Literal["warning", "info"]
    message: str
    is_loss: bool = False


NOTES: dict[str, Note] = {
    "answer_dropped": Note(
        "warning", "rows have an answer or a call that the chat template does not show", True
    ),
    "thoughts_dropped": Note(
        "warning", "rows have thoughts that the chat template leaves out: not learned", True
    ),
    "message_dropped": Note(
        "warning", "rows have a message that the chat template does not show", True
    ),
    "tools_dropped": Note("warning", "rows have tools that the chat template does not show", True),
    "fields_dropped": Note(
        "info", "rows have fields in their messages that the chat template does not show", True
    ),
    "ends_without_answer": Note(
        "warning", "chats end without an answer; what follows the last answer is not used", True
    ),
    "replacement_character": Note(
        "warning", "rows hold U+FFFD: characters were lost when the file was converted"
    ),
    "mojibake": Note(
        "warning", "rows hold UTF-8 that was read as another encoding, such as Ã© for é"
    ),
    "special_token_in_text": Note(
        "warning", "rows hold the text of a special token, which becomes that token", True
    ),
    "end_inside_answer": Note(
        "warning", "rows have an end token inside an answer: the model learns to stop there", True
    ),
    "empty_prompt": Note("warning", "rows have no prompt"),
    "separator": Note("info", "file is read with another separator than its suffix says"),
    "sheets_left_out": Note("warning", "workbook has further sheets, which are not read", True),
    "parts_left_out": Note("warning", "file has further lists, which are not read", True),
}
"""Kind → its note, the most serious first."""
