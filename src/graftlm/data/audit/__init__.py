"""The audit: finds problems in rows before training."""

from __future__ import annotations

__all__: list[str] = []
