"""Decoding: one engine for `generate`, `chat`, `serve`, the demo and the comparisons."""

from __future__ import annotations

__all__: list[str] = []
