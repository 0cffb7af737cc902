"""The effect of rounding merged weights.

The rounding R of W' = W + Δ to the type of W is the only loss of a merge: in bfloat16 it is at most
2⁻⁹ of the weight, which can exceed a small update. Its figures are the largest rounding, the share
of the update that remains, and the share of weights that change:

    kept = ⟨R(W + Δ) − W, Δ⟩ / ⟨Δ, Δ⟩            1 when nothing is lost, 0 when no weight changes
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

__all__ = ["Rounding", "round_once"]


@dataclasses.dataclass
class Rounding:
    """The effect of rounding on merged weights, summed over all of them.

    Attributes:
        largest: largest difference between a stored weight and its float32 value.
        along: ⟨rounded change, exact change⟩.
        exact: ⟨exact change, exact change⟩.
        changed: of the weights in ``to_change``, those whose stored value changed.
        to_change: weights whose exact change is not zero.
    """

    largest: float = 0.0
    along: float = 0.0
    exact: float = 0.0
    changed: int = 0
    to_change: int = 0

    def add(self, other: Rounding) -> None:
        """Add the figures of ``other``."""
        self.largest = max(self.largest, other.largest)
        self.along += other.along
        self.exact += other.exact
        self.changed += other.changed
        self.to_change += other.to_change

    @property
    def update_kept(self) -> float:
        """Share of the update that remains; 1 if there is no update."""
        return self.along / self.exact if self.exact else 1.0

    @property
    def weights_changed(self) -> float:
        """Share of the weights with an update whose stored value changed; 1 if there are none."""
        return self.changed / self.to_change if self.to_change else 1.0


@torch.no_grad()
def round_once(
    weight: Tensor, exact: Tensor, delta: Tensor, dtype: torch.dtype | None = None
) -> tuple[Tensor, Rounding]:
    """``exact`` in its stored type, and the effect of the rounding.

    Args:
        weight: the frozen tensor, any floating-point type.
        exact: the merged tensor in float32.
        delta: what the merge changes, float32.
        dtype: the type of the result; that of ``weight`` by default.
    """
    rounded = exact.to(dtype or weight.dtype)
    widened = rounded.float()
    largest = float((widened - exact).abs().max()) if weight.numel() else 0.0
    change = widened - weight
    return rounded, Rounding(
        largest=largest,
        along=float((change * delta).sum(dtype=torch.float64)),
        exact=float(delta.square().sum(dtype=torch.float64)),
        changed=int(torch.count_nonzero(torch.logical_and(change, delta))),
        to_change=int(torch.count_nonzero(delta)),
    )
