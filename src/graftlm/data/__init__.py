"""From rows to batches: sources, formats, chat templates, exact loss masks, packing, an audit."""

from __future__ import annotations

from graftlm.data.batch import IGNORED, Batch, Example, collate
from graftlm.data.chat import ChatFormat, use_chat_template
from graftlm.data.examples import Examples, LoadReport, load_examples
from graftlm.data.formats import Row, parse_row
from graftlm.data.tokenise import Encoder, render_prompt

__all__ = [
    "IGNORED",
    "Batch",
    "ChatFormat",
    "Encoder",
    "Example",
    "Examples",
    "LoadReport",
    "Row",
    "collate",
    "load_examples",
    "parse_row",
    "render_prompt",
    "use_chat_template",
]
