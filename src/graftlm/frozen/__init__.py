"""Frozen weights: the storage of weights that are not trained."""

from __future__ import annotations

__all__: list[str] = []
