"""`graftlm serve`: an endpoint that speaks OpenAI's chat and completion protocol."""

from __future__ import annotations

__all__: list[str] = []
