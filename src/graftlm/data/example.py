"""One example. This file does not import torch, so the processes that tokenise need not load it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Example"]


@dataclass(frozen=True, eq=False, slots=True)
class Example:
    """One sequence of tokens, or several packed end to end."""

    input_ids: npt.NDArray[np.int32] | Sequence[int]
    """Token ids, (length,)."""
    supervised: npt.NDArray[np.bool_] | Sequence[bool]
    """Which of them are learned, (length,)."""
    lengths: tuple[int, ...] | None = None
    """Packed: the length of each sequence inside; ``None`` for a single sequence."""

    def __len__(self) -> int:
        return len(self.input_ids)
