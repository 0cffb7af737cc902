"""The gated feed-forward layer as a module: the projections of the one it stands for."""

from __future__ import annotations

from torch import Tensor, nn

from graftlm.kernels.gated_unit import gated_unit

__all__ = ["GatedMLP"]


class GatedMLP(nn.Module):
    """``y = W_down (act(W_gate x) · W_up x)``; the middle in one pass: `kernels/gated_unit.py`.

    The projections keep their names, so that whatever wraps or replaces them by name still does.

    Attributes:
        gate_proj: (..., D) → (..., H).
        up_proj: (..., D) → (..., H).
        down_proj: (..., H) → (..., D).
        act: the activation's (k, a).
    """

    def __init__(
        self,
        gate_proj: nn.Module,
        up_proj: nn.Module,
        down_proj: nn.Module,
        act: tuple[float, float],
    ) -> None:
        super().__init__()
        self.gate_proj = gate_proj
        self.up_proj = up_proj
        self.down_proj = down_proj
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) → (..., D)."""
        y: Tensor = self.down_proj(gated_unit(self.gate_proj(x), self.up_proj(x), self.act))
        return y
