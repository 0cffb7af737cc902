"""Reads adapters on every expert's own layers into the fused experts of transformers 5.

Under transformers 4 each expert had linear layers of its own. The adapters of the layers that are
rows of one fused matrix become one adapter of the sum of their ranks, with the same update:

    W = [W_1; W_2]      s [B_1 A_1; B_2 A_2]  =  s [B_1 0; 0 B_2] [A_1; A_2]

    W_1, W_2  gate_proj, up_proj      s  the scaling of both
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from graftlm.adapters.adapted import adaptable_modules
from graftlm.adapters.adapter import adapter_scaling
from graftlm.adapters.names import pattern_value
from graftlm.adapters.peft_config import AdapterConfig
from graftlm.frozen.experts import ExpertStack
from graftlm.models.joined_experts import JoinedExperts, ReorderedExperts, joined_experts

__all__ = ["SplitExperts", "with_split_experts"]

A, B = "lora_A.weight", "lora_B.weight"
State = Mapping[str, Tensor]


class SplitExperts:
    """Adapters on the parts of one fused parameter.

    Attributes:
        parts: the modules in the file, for each expert, from the top of its matrix.
        state: the tensors of the fused adapter, as PEFT stores them.
        rank: its rank.
        alpha: its alpha, for the scaling of the parts.
    """

    def __init__(
        self, joined: JoinedExperts, states: Mapping[str, State], scaling: float, rslora: bool
    ) -> None:
        self.parts = [[key.removesuffix(".weight") for key in keys] for keys in joined.keys]
        As, Bs = [], []
        for parts in self.parts:
            As.append(torch.cat([states[part][A] for part in parts]))
            Bs.append(_block_diagonal([states[part][B] for part in parts]))
        stacked = torch.stack(Bs)  # [E, out, r]
        self.rank = stacked.shape[2]
        self.alpha = scaling / adapter_scaling(self.rank, 1.0, rslora)
        self.state = {A: torch.cat(As), B: stacked.permute(1, 2, 0).flatten(1, 2)}


def _block_diagonal(parts: list[Tensor]) -> Tensor:
    """Matrices of one shape [rows, r] on the diagonal: [n · rows, n · r]."""
    rows, rank = parts[0].shape
    result = parts[0].new_zeros(len(parts), rows, len(parts), rank)
    for index, part in enumerate(parts):
        result[index, :, index] = part
    return result.view(len(parts) * rows, len(parts) * rank)


def with_split_experts(
    states: Mapping[str, State], config: AdapterConfig, model: nn.Module
) -> tuple[dict[str, dict[str, Tensor]], AdapterConfig]:
    """States and settings in which the adapters of every expert's own layers are fused.

    Args:
        states: the tensors of each module in the file.
        config: the settings of the file.
        model: the model.
    """
    fused = _fused(states, config, model)
    gone = {part for one in fused.values() for parts in one.parts for part in parts}
    result = {name: dict(state) for name, state in states.items() if name not in gone}
    result |= {name: one.state for name, one in fused.items()}
    if not fused:
        return result, config
    ranks = {re.escape(name): one.rank for name, one in fused.items()}
    alphas = {re.escape(name): one.alpha for name, one in fused.items()}
    changes = {
        "target_parameters": [*config.target_parameters, *fused],
        "rank_pattern": ranks | config.rank_pattern,
        "alpha_pattern": alphas | config.alpha_pattern,
    }
    return result, config.model_copy(update=changes)


def _fused(
    states: Mapping[str, State], config: AdapterConfig, model: nn.Module
) -> dict[str, SplitExperts]:
    modules = adaptable_modules(model)
    stacks = {n: m for n, m in modules.items() if isinstance(m, ExpertStack) and not m.transposed}
    if not isinstance(model, PreTrainedModel) or not stacks:
        return {}
    sizes = {name: stack.shape[0] for name, stack in stacks.items()}
    unknown = [f"{module}.weight" for module in states if module not in modules]
    found = {}
    for name, one in joined_experts(model, unknown, sizes).items():
        if isinstance(one, ReorderedExperts):  # no expert has layers of its own there
            continue
        parts = [key.removesuffix(".weight") for keys in one.keys for key in keys]
        scalings = {_scaling(config, part) for part in parts}
        shapes = {tuple(tuple(t.shape) for _, t in sorted(states[part].items())) for part in parts}
        _, rows, columns = stacks[name].shape
        rank = len(states[parts[0]][A]) if A in states[parts[0]] else 0
        wanted = ((rank, columns), (rows // len(one.keys[0]), rank))
        whole = all(states[part].keys() == {A, B} for part in parts)
        if whole and shapes == {wanted} and len(scalings) == 1:
            found[name] = SplitExperts(one, states, scalings.pop(), config.use_rslora)
    return found


def _scaling(config: AdapterConfig, module: str) -> float:
    rank = pattern_value(config.rank_pattern, module, config.r)
    alpha = pattern_value(config.alpha_pattern, module, config.lora_alpha)
    return adapter_scaling(rank, alpha, config.use_rslora)
