"""How much of its rank each adapted layer uses, from the adapter's files.

    ΔW = s B A = U S Vᵀ             S follows from two thin QR decompositions
    ‖ΔW‖ = √(Σ S_i²)
    effective rank = exp(-Σ p_i ln p_i)       p_i = S_i / Σ S_j      (Roy & Vetterli, 2007)

It is r where all r directions count equally, and 1 where one does. Far below r the rank is larger
than what the layer has learned; close to r the layer may use more.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from graftlm.adapters.adapter import adapter_scaling
from graftlm.adapters.names import pattern_value
from graftlm.adapters.peft_config import read_config
from graftlm.adapters.variant_of_file import WEIGHTS_NAME

__all__ = ["LayerRank", "advice", "layer_ranks", "rank_rows"]

KEY = re.compile(r"(?:base_model\.model\.)?(?P<name>.+)\.lora_(?P<side>[AB])\.weight")
WASTED, SHORT = 0.25, 0.9
"""Effective rank as a share of the rank: below the first it is wasted, above the second short."""


@dataclasses.dataclass(frozen=True)
class LayerRank:
    """The update of one layer.

    Attributes:
        name: of the module.
        rank: r.
        effective: the effective rank of ΔW.
        norm: ‖ΔW‖.
    """

    name: str
    rank: int
    effective: float
    norm: float

    @property
    def used(self) -> float:
        """The share of the rank that is used."""
        return self.effective / self.rank


def layer_ranks(adapter: Path) -> list[LayerRank]:
    """The layers of the adapter in the folder ``adapter``, in the order of the file.

    Raises:
        ArtifactError: its adapter_config.json cannot be read.
    """
    config = read_config(adapter)
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in safetensors.torch.load_file(adapter / WEIGHTS_NAME).items():
        if (match := KEY.fullmatch(key)) and tensor.ndim == 2:
            pairs.setdefault(match["name"], {})[match["side"]] = tensor.float()
    found = []
    for name, pair in pairs.items():
        if len(pair) == 2:
            rank = len(pair["A"])
            alpha = pattern_value(config.alpha_pattern, name, config.lora_alpha)
            S = _singular_values(pair["A"], pair["B"])
            S = S * abs(adapter_scaling(rank, alpha, config.use_rslora))
            found.append(LayerRank(name, rank, _effective(S), float(S.norm())))
    return found


def rank_rows(layers: Sequence[LayerRank]) -> list[tuple[str, str]]:
    """A row for each kind of module: the range of its norms and effective ranks."""
    kinds: dict[str, list[LayerRank]] = {}
    for layer in layers:
        kinds.setdefault(layer.name.rpartition(".")[2], []).append(layer)
    return [
        (
            f"{kind} ×{len(own)}",
            f"‖ΔW‖ {_range([one.norm for one in own])}; effective rank "
            f"{_range([one.effective for one in own])} of {_range([one.rank for one in own])}",
        )
        for kind, own in kinds.items()
    ]


def advice(layers: Sequence[LayerRank]) -> str:
    """One sentence on where rank is wasted or short; empty without layers."""
    if not layers:
        return ""
    wasted = [one for one in layers if one.used < WASTED]
    short = [one for one in layers if one.used > SHORT and one.rank > 1]
    said = []
    if wasted:
        said.append(
            f"{len(wasted)} of {len(layers)} layers use less than a quarter of their rank "
            f"({_names(wasted)}): a smaller one would do there"
        )
    if short:
        said.append(
            f"{len(short)} of {len(layers)} use all of it ({_names(short)}): a larger one may help "
            "there (lora.rank_pattern)"
        )
    return "; ".join(said) + "." if said else "No layer wastes its rank, and none uses all of it."


def _singular_values(A: Tensor, B: Tensor) -> Tensor:
    """Those of B A, from A [r, in] and B [out, r]."""
    values: Tensor = torch.linalg.svdvals(torch.linalg.qr(B).R @ torch.linalg.qr(A.T).R.T)
    return values


def _effective(S: Tensor) -> float:
    total = S.sum()
    if not float(total) > 0:
        return 0.0
    p = S / total
    return float(torch.exp(-torch.special.xlogy(p, p).sum()))


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g} to {high:.3g}"


def _names(layers: Sequence[LayerRank], limit: int = 3) -> str:
    more = ", …" if len(layers) > limit else ""
    return ", ".join(one.name for one in layers[:limit]) + more
