"""From rows to batches: sources, formats, chat templates, exact loss masks, packing, an audit.

Only `batch` needs torch, and it is imported on first use, so the processes that tokenise rows do
not load torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graftlm.data.chat import ChatFormat, use_chat_template
from graftlm.data.example import Example
from graftlm.data.examples import load_examples
from graftlm.data.formats import Row, parse_row
from graftlm.data.pack import pack_examples
from graftlm.data.report import LoadReport
from graftlm.data.store import Examples
from graftlm.data.tokenise import Encoder, render_prompt, stop_tokens

if TYPE_CHECKING:
    from graftlm.data.batch import IGNORED, Batch, collate

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
    "pack_examples",
    "parse_row",
    "render_prompt",
    "stop_tokens",
    "use_chat_template",
]

_WITH_TORCH = {"IGNORED", "Batch", "collate"}


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module 'graftlm.data' has no attribute {name!r}")
    from graftlm.data import batch

    return getattr(batch, name)
