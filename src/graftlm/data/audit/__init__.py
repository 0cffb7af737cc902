"""What is wrong with rows before anything is learned from them."""

from __future__ import annotations

__all__: list[str] = []
