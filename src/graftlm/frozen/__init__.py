"""Frozen weights: how a weight that is not trained is stored."""

from __future__ import annotations

__all__: list[str] = []
