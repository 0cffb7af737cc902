"""The studio: a local page for the whole way, from rows to an exported model.

The page starts the commands of `graftlm` as processes of their own and reads the folders that they
write. The server itself loads no model: see `app.py` for what it answers.
"""

from __future__ import annotations

__all__: list[str] = []
