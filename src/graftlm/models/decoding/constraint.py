"""The contract of a constraint: which tokens may come next in one answer."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Constraint", "only"]


class Constraint(Protocol):
    """Follows one answer, for example along a JSON schema."""

    def allowed(self) -> Tensor:
        """The tokens that may come next, (n,) bool; a token from n on may not.

        Raises:
            DataError: no token can, or the rules are too complex to follow.
        """

    def take(self, token: int) -> None:
        """Go on after ``token``, which is allowed."""


def only(logits: Tensor, allowed: Tensor) -> Tensor:
    """``logits`` (V,), minus infinity where a token is not ``allowed`` (n,)."""
    kept = torch.full_like(logits, -torch.inf)
    count = min(len(logits), len(allowed))
    there = allowed[:count].to(logits.device)
    kept[:count][there] = logits[:count][there]
    return kept
