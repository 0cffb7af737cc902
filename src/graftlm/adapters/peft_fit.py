"""Whether the tensors of an adapter in PEFT's format fit a model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from graftlm.adapters.adapted import adapter_names, lora_modules
from graftlm.adapters.adapter import Adapter, adapter_class, adapter_scaling
from graftlm.adapters.lora_bias import OWN_BIAS, WithBias
from graftlm.adapters.names import matching, pattern_value
from graftlm.adapters.peft_config import AdapterConfig
from graftlm.adapters.peft_trained import States, bias_shapes
from graftlm.adapters.targets import Target, adaptable
from graftlm.adapters.trained_parts import TrainedPart
from graftlm.errors import near_matches
from graftlm.frozen.embedding import FrozenEmbedding, FrozenOutput

__all__ = ["PREFIX", "alpha_of", "already_there", "problems_of", "rank_of"]

PREFIX = "base_model.model."


def problems_of(
    model: nn.Module, config: AdapterConfig, modules: Mapping[str, nn.Module], states: States
) -> list[str]:
    """What of the low-rank tensors does not fit the model."""
    targeted = config.targeted(model)
    every = [f"{name}.weight" for name in modules] + [n for n in modules if n in (targeted or ())]
    problems = [
        f"its adapter_config.json names the parameter {entry}, which cannot be adapted here"
        for entry in config.target_parameters
        if not matching(every, [entry])
    ]
    for name in targeted or ():
        if name not in states:
            keys = " and ".join(_shapes(config, name, modules[name]))
            problems.append(f"missing: {keys} (its adapter_config.json targets {name})")
    if not states:
        problems.append("it holds no LoRA tensors")
    fitting = [name for name, module in modules.items() if adaptable(module, config.variant)]
    for name, state in states.items():
        module = modules.get(name)
        if isinstance(module, FrozenEmbedding | FrozenOutput):
            problems.append(f"{name} is held in 8 bits here: load the model with embeddings=keep")
            continue
        if module is None or not adaptable(module, config.variant):
            hint = near_matches(name, fitting)
            problems.append(f"unexpected: tensors for {name}, which is no such layer here{hint}")
            continue
        if targeted is not None and name not in targeted:
            problems.append(f"unexpected: tensors for {name}, which its config does not target")
        shapes = _shapes(config, name, module)
        whole = (f"{PREFIX}{name}.{suffix}" for suffix in state)
        problems += [f"unexpected: {key}" for key in whole if key not in shapes]
        for key, shape in shapes.items():
            tensor = state.get(key.removeprefix(f"{PREFIX}{name}."))
            if tensor is None and key.endswith(f".{OWN_BIAS}"):
                continue  # versions of PEFT that did not store it left it as it was
            if tensor is None:
                problems.append(f"missing: {key}")
            elif not bool(torch.isfinite(tensor).all()):
                problems.append(f"{key} holds NaN or infinite numbers")
            elif tuple(tensor.shape) != shape:
                problems.append(
                    f"{key} has shape {list(tensor.shape)}, expected {list(shape)} "
                    f"(rank {rank_of(config, name)})"
                )
    return problems


def _shapes(config: AdapterConfig, name: str, module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The tensors that belong to the module ``name``, by their whole key."""
    cls = adapter_class(config.variant, module)
    assert cls is not None, f"{name} was checked before"
    shapes = cls.peft_shapes(module, rank_of(config, name))
    if issubclass(cls, WithBias):
        shapes |= bias_shapes(config, module)
    return {f"{PREFIX}{name}.{suffix}": shape for suffix, shape in shapes.items()}


def alpha_of(config: AdapterConfig, name: str) -> float:
    """The alpha of the module ``name``."""
    return pattern_value(config.alpha_pattern, name, config.lora_alpha)


def rank_of(config: AdapterConfig, name: str) -> int:
    """The rank of the module ``name``."""
    return pattern_value(config.rank_pattern, name, config.r)


def already_there(
    model: nn.Module,
    targets: list[Target],
    parts: list[TrainedPart],
    config: AdapterConfig,
    name: str,
) -> bool:
    """Whether the model has an adapter of this name and shape, whose parameters can be kept."""
    if name not in adapter_names(model):
        return False
    there = lora_modules(model, name)
    low = [
        (n, m.variant, m.saved_rank, m.scaling, *_biases_of(m)) for n, m in there.items() if m.rank
    ]
    wanted = [
        (
            *(t.name, config.variant, t.rank),
            adapter_scaling(t.rank, t.alpha, config.use_rslora),
            *_biases_wanted(config, t),
        )
        for t in targets
    ]
    trained = {n: getattr(m, "indices", ()) for n, m in there.items() if not m.rank}
    return low == wanted and trained == {part.name: part.indices for part in parts}


def _biases_wanted(config: AdapterConfig, target: Target) -> tuple[bool, bool]:
    cls = adapter_class(config.variant, target.module)
    if cls is None or not issubclass(cls, WithBias):
        return False, False
    own = config.bias != "none" and getattr(target.module, "bias", None) is not None
    return own, config.lora_bias


def _biases_of(adapter: Adapter) -> tuple[bool, bool]:
    """Whether the layer's own bias trains, and one of the update."""
    if not isinstance(adapter, WithBias):
        return False, False
    return adapter.trained_bias is not None, adapter.lora_bias is not None
