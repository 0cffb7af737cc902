"""A new adapter from several on one base, as a weighted combination.

    exact      cat               s B A = Σ_i w_i s_i B_i A_i        of rank Σ r_i
    on updates svd               the best approximation of that sum, of rank r
               ties_svd, …       combines ΔW_i = s_i B_i A_i by one of the rules, then rank r
    on factors linear, ties, …   combines the A_i, and the B_i, by one of the rules; ranks are equal

The rules, on tensors T_i of weights w_i (PEFT's `add_weighted_adapter` has the same):

    linear             Σ w_i T_i
    magnitude_prune    … of the share `density` of each T_i that is largest
    dare_linear        … of a random share, divided by it (arXiv 2311.03099)
    ties               prune by magnitude; each element takes the sign of its sum, and the mean of
                       w_i T_i over those of that sign (arXiv 2306.01708)
    dare_ties          the same after a random share

On factors w_i counts as √|w_i s_i| in A and in B, with its sign in A. That is not the sum of the
updates: it has products of A_i with B_j. Use ``cat`` or ``svd`` for the sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from graftlm.adapters.adapted import adaptable_modules, adapter_names, lora_modules
from graftlm.adapters.adapter import Adapter
from graftlm.adapters.inject import attach
from graftlm.adapters.lora_embedding import LoRAEmbedding
from graftlm.adapters.lora_linear import LoRALinear
from graftlm.adapters.report import LoRAReport, describe
from graftlm.adapters.targets import Target
from graftlm.errors import ConfigError, TargetError, near_matches

__all__ = ["COMBINATIONS", "combine_adapters"]

RULES = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
COMBINATIONS = ("cat", "svd", *RULES, *("_".join((rule, "svd")) for rule in RULES[1:]))


@torch.no_grad()
def combine_adapters(
    model: nn.Module,
    weights: Mapping[str, float],
    name: str,
    *,
    combination: str = "cat",
    rank: int | None = None,
    density: float = 0.5,
) -> LoRAReport:
    """Add an adapter that combines others, in place; they stay, and the new one starts inactive.

    Args:
        model: a model with these adapters.
        weights: the weight of each adapter by its name; may be negative.
        name: of the new adapter.
        combination: one of `COMBINATIONS`.
        rank: of the result, for those that end in ``svd``; by default the largest rank.
        density: the share of each tensor that ``ties``, ``dare`` and ``magnitude_prune`` keep.

    ``dare`` draws from torch's global generator.

    Raises:
        ConfigError: the combination is unknown, or ranks differ where they must be equal.
        TargetError: an adapter is missing or cannot be combined, or the name is taken.
    """
    parts = _checked(model, weights, name, combination, density)
    modules = adaptable_modules(model)
    made: dict[str, tuple[Tensor, Tensor]] = {}
    for place in modules:
        own = [(parts[key][place], w) for key, w in weights.items() if place in parts[key]]
        if own:
            made[place] = _combined(
                [a for a, _ in own], [w for _, w in own], combination, rank, density
            )
    targets = [
        Target(place, modules[place], len(A), float(len(A))) for place, (A, _) in made.items()
    ]
    attach(model, targets, 0.0, False, "lora", name)
    for place, adapter in lora_modules(model, name).items():
        adapter.lora_A.copy_(made[place][0])  # type: ignore[operator]
        adapter.lora_B.copy_(made[place][1])  # type: ignore[operator]
    return describe(model, adapter=name)


def _checked(
    model: nn.Module, weights: Mapping[str, float], name: str, combination: str, density: float
) -> dict[str, dict[str, Adapter]]:
    """The modules of each adapter, if they can be combined in this way."""
    if combination not in COMBINATIONS:
        raise ConfigError(
            f"combination {combination!r}: expected one of {', '.join(COMBINATIONS)}"
            f"{near_matches(combination, COMBINATIONS)}"
        )
    if not weights or not 0 < density <= 1:
        raise ConfigError("a combination needs at least one adapter, and a density in (0, 1]")
    if name in adapter_names(model):
        raise TargetError(f"the model has an adapter {name!r} already: choose another name")
    parts = {key: lora_modules(model, key) for key in weights}
    ranks: dict[str, set[int]] = {}
    for key, modules in parts.items():
        for place, adapter in modules.items():
            if adapter.variant != "lora" or not isinstance(adapter, LoRALinear | LoRAEmbedding):
                raise TargetError(
                    f"{place} of {key!r} is {type(adapter).__name__}: only LoRA on linear layers "
                    "and token tables can be combined. Merge it instead."
                )
            ranks.setdefault(place, set()).add(adapter.saved_rank)
    if combination in RULES and (odd := [place for place, r in ranks.items() if len(r) > 1]):
        raise ConfigError(
            f"combination {combination!r} needs equal ranks, and those at {odd[0]} are "
            f"{sorted(ranks[odd[0]])}: use cat or svd"
        )
    return parts


def _combined(
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    combination: str,
    rank: int | None,
    density: float,
) -> tuple[Tensor, Tensor]:
    """A [r, in] and B [out, r] of a combination with scaling 1."""
    pairs = [_factors(adapter) for adapter in adapters]
    scaled = [w * a.scaling for w, a in zip(weights, adapters, strict=True)]
    if combination in ("cat", "svd"):
        A = torch.cat([A for A, _ in pairs])
        B = torch.cat([B * w for (_, B), w in zip(pairs, scaled, strict=True)], 1)
        return (A, B) if combination == "cat" else _shortened(A, B, rank or _largest(adapters))
    if combination in RULES:
        roots = [math.sqrt(abs(w)) for w in scaled]
        signed = [math.copysign(root, w) for root, w in zip(roots, scaled, strict=True)]
        A = _by_rule(combination, [A for A, _ in pairs], signed, density)
        return A, _by_rule(combination, [B for _, B in pairs], roots, density)
    updates = [(B @ A) * a.scaling for (A, B), a in zip(pairs, adapters, strict=True)]
    change = _by_rule(combination.rpartition("_")[0], updates, weights, density)
    U, S, Vt = torch.linalg.svd(change, full_matrices=False)
    count = rank or _largest(adapters)
    return Vt[:count], U[:, :count] * S[:count]


def _shortened(A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation of B A of rank ``rank``, without forming B A."""
    left, right = torch.linalg.qr(B), torch.linalg.qr(A.T)
    U, S, Vt = torch.linalg.svd(left.R @ right.R.T)
    return Vt[:rank] @ right.Q.T, (left.Q @ U[:, :rank]) * S[:rank]


def _by_rule(rule: str, tensors: list[Tensor], weights: Sequence[float], density: float) -> Tensor:
    if rule != "linear" and density < 1:
        at_random = rule.startswith("dare")
        tensors = [_drawn(t, density) if at_random else _largest_of(t, density) for t in tensors]
    stacked = torch.stack(tensors)
    weighted = stacked * torch.tensor(weights).to(stacked).view(-1, *[1] * tensors[0].ndim)
    if not rule.endswith("ties"):
        return weighted.sum(0)
    sign = torch.where(stacked.sum(0) >= 0, 1, -1)
    agrees = stacked.sign() == sign
    return (weighted * agrees).sum(0) / agrees.sum(0).clamp(min=1)


def _largest_of(tensor: Tensor, density: float) -> Tensor:
    """``tensor`` with zeros for all but the share ``density`` of the largest magnitudes."""
    kept = tensor.abs().flatten().topk(int(density * tensor.numel())).indices
    mask = torch.zeros_like(tensor).flatten()
    mask[kept] = 1
    return tensor * mask.view_as(tensor)


def _drawn(tensor: Tensor, density: float) -> Tensor:
    """A random share of ``tensor``, divided by the share; zeros for the rest."""
    return tensor * torch.bernoulli(torch.full_like(tensor, density)) / density


def _factors(adapter: Adapter) -> tuple[Tensor, Tensor]:
    if isinstance(adapter, LoRALinear):
        return adapter.factors()
    assert isinstance(adapter, LoRAEmbedding)
    return adapter.lora_A, adapter.lora_B


def _largest(adapters: Sequence[Adapter]) -> int:
    return max(adapter.saved_rank for adapter in adapters)
