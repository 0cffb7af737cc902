"""Modules that take the place of transformers' own and read their inputs once."""

from __future__ import annotations

from graftlm.models.fused.gated_mlp import GatedMLP
from graftlm.models.fused.output_linear import OutputLinear
from graftlm.models.fused.rms_norm import RMSNorm

__all__ = ["GatedMLP", "OutputLinear", "RMSNorm"]
