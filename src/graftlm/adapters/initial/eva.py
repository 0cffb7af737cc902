"""EVA: start from the directions in which the layer's inputs vary (arXiv 2410.07170).

    X [tokens, in]                   a layer's inputs on the training rows
    X - mean(X) = U S Vᵀ             by incremental PCA, batch after batch
    ξ_i = S_i² / Σ_j S_j²            the share of the variance that direction i explains
    A = V_rᵀ                         B = 0

The ranks are redistributed: of all directions of all layers, the Σ r with the largest ξ are kept,
at most ρ r in one layer. A layer may end without an adapter. Its scaling stays alpha / r of the
request, as in PEFT: alpha follows the rank.

    A [r, in]  lora_A      ξ  `Components.explained`      ρ  `lora.eva_rho`
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from graftlm.adapters.initial.incremental_pca import IncrementalPCA
from graftlm.adapters.layers import linear_shape
from graftlm.adapters.targets import Target
from graftlm.data.example import Example
from graftlm.errors import ConfigError
from graftlm.models.probing import being_probed

__all__ = ["MOST_ROWS", "components", "redistributed", "shared_inputs"]

ROWS_AT_ONCE = 8
MOST_ROWS = 512
"""Rows that are read at most. The directions of most layers have settled long before."""
SETTLED = 0.99
"""The cosine between a direction and itself a batch before, from which on it counts as settled."""


def components(
    model: Any, targets: Sequence[Target], rows: Sequence[Example], rho: float
) -> dict[str, IncrementalPCA]:
    """The principal directions of each target's inputs; layers of one input share an object.

    Only the inputs at supervised tokens count, as in PEFT. A target that no row reaches is left
    out.

    Args:
        model: the model before the adapters are added.
        targets: the modules to adapt.
        rows: the training rows; read from the first on, until the directions have settled.
        rho: how many times its rank a layer may get.

    Raises:
        ConfigError: there are no rows.
    """
    if not len(rows):
        raise ConfigError(
            "lora.init=eva starts from the inputs of the layers on training rows: pass them, as "
            "add_lora(model, config, rows=examples), or use `graftlm train`"
        )
    layers = [(t.name, t.module) for t in targets if linear_shape(t.module) is not None]
    of: dict[str, IncrementalPCA] = {}
    with being_probed(model):
        for start in range(0, min(len(rows), MOST_ROWS), ROWS_AT_ONCE):
            seen: dict[str, list[Tensor]] = collections.defaultdict(list)
            for index in range(start, min(start + ROWS_AT_ONCE, len(rows))):
                for names, x in _inputs(model, layers, rows[index]):
                    seen[names[0]].append(x)
                    if names[0] not in of:
                        most = max(round(t.rank * rho) for t in targets if t.name in names)
                        of |= dict.fromkeys(names, IncrementalPCA(most))
            for name, parts in seen.items():
                of[name].add(torch.cat(parts))
            if of and all(pca.settled >= SETTLED for pca in of.values()):
                break
    return of


def redistributed(
    targets: Sequence[Target], found: Mapping[str, IncrementalPCA], rho: float
) -> list[Target]:
    """The targets with the ranks that the explained variances give them; those of rank 0 left out.

    Args:
        targets: with the ranks of the request.
        found: from `components`. A target without directions keeps its rank.
        rho: how many times its rank a layer may get.
    """
    known = [target for target in targets if target.name in found]
    budget = sum(target.rank for target in known)
    shares = [
        (float(share), target.name)
        for target in known
        for share in found[target.name].explained[: round(target.rank * rho)]
    ]
    shares.sort(key=lambda pair: -pair[0])
    counts = collections.Counter(name for _, name in shares[:budget])
    new = []
    for target in targets:
        rank = counts[target.name] if target.name in found else target.rank
        if rank:
            alpha = target.alpha * rank / target.rank
            new.append(dataclasses.replace(target, rank=rank, alpha=alpha))
    return new


def _inputs(
    model: Any, layers: Sequence[tuple[str, nn.Module]], row: Example
) -> Iterator[tuple[list[str], Tensor]]:
    """The inputs (tokens, in) of the targets on one row, with the names of those that share it."""
    device = next(model.parameters()).device
    ids = torch.tensor(row.input_ids, dtype=torch.int64, device=device)[None]
    counts = torch.tensor(row.supervised, dtype=torch.bool, device=device)
    seen = shared_inputs(model, layers, ids)
    for names, x in seen:
        flat = x.reshape(-1, x.shape[-1])
        chosen = flat[counts] if len(flat) == len(counts) else flat  # experts see some tokens only
        if len(chosen):
            yield names, chosen.float()


def shared_inputs(
    model: Any, modules: Sequence[tuple[str, nn.Module]], ids: Tensor
) -> list[tuple[list[str], Tensor]]:
    """What each module is called with, once for all modules that are called with the same tensor.

    Args:
        model: is called on ``ids`` (1, tokens); its output layer is left out.
        modules: names and modules.
        ids: token ids.
    """
    kept: dict[int, tuple[list[str], Tensor]] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            x = arguments[0]
            kept.setdefault(id(x), ([], x))[0].append(name)

        return hook

    handles = [module.register_forward_pre_hook(note(name)) for name, module in modules]
    try:
        getattr(model, model.base_model_prefix, model)(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return list(kept.values())
