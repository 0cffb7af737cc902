"""From rows to batches: sources, formats, chat templates, exact loss masks, packing, an audit."""

from __future__ import annotations

from graftlm.data.batch import IGNORED, Batch, Example, collate
from graftlm.data.chat import ChatFormat, use_chat_template
from graftlm.data.examples import load_examples, load_split
from graftlm.data.formats import Row, parse_row
from graftlm.data.pack import pack_examples
from graftlm.data.report import LoadReport
from graftlm.data.store import Examples
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
    "load_split",
    "pack_examples",
    "parse_row",
    "render_prompt",
    "use_chat_template",
]
