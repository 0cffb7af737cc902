"""How transformers' models compute their experts; seen in transformers 5.23.

`transformers.integrations.moe` marks the classes whose experts it can compute in several ways: it
gives their modules the attributes of `LAYOUT` and the method `_apply_gate`. The way is the function
that is registered in `ALL_EXPERTS_FUNCTIONS` under the name in the module's own
`config._experts_implementation_internal`.

Other classes compute their experts by code of their own (`OWN_CODE`). Such a module, and the block
around it where that prepares the experts' rows, gets a `forward` of its own while its experts are
held (`computes_by`).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

__all__ = [
    "OWN_CODE",
    "ExpertLayout",
    "computes_by",
    "computes_experts_by",
    "experts_in",
    "gated",
    "layout_of",
    "preparing",
    "register_experts_function",
    "turned_in_peft",
]

LAYOUT = ("has_gate", "has_bias", "has_post_expert_norm", "is_transposed", "config")


class ExpertLayout(NamedTuple):
    """The fused parameters of a module of experts.

    Attributes:
        leaves: their names.
        transposed: whether each is [E, in, out].
    """

    leaves: tuple[str, ...]
    transposed: bool


BOTH = ("gate_up_proj", "down_proj")
OWN_CODE = {
    "Llama4TextExperts": ExpertLayout(BOTH, True),
    "LongcatFlashExperts": ExpertLayout(BOTH, False),
    "Step3p7Experts": ExpertLayout(BOTH, False),
    "JetMoeParallelExperts": ExpertLayout(("weight",), False),
}
"""By the name of the class."""
BLOCKS = {
    "Llama4TextMoe": (("experts",), ""),
    "JetMoeMoE": (("input_linear", "output_linear"), "router"),
    "JetMoeMoA": (("input_linear", "output_linear"), "router"),
}
"""By the name of the class: where it holds experts, and which part of it prepares their rows."""


def preparing(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """The module that prepares the rows of experts with code of their own, by the experts."""
    found: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        held, part = BLOCKS.get(type(module).__name__, ((), ""))
        found |= {module.get_submodule(name): module.get_submodule(part) for name in held}
    return found


def register_experts_function(name: str, function: Callable[..., Tensor]) -> None:
    """Make a way of computing experts known under ``name``."""
    ALL_EXPERTS_FUNCTIONS.register(name, function)


def layout_of(module: Any) -> ExpertLayout | None:
    """The layout of the experts in ``module``; ``None`` if it has none of a known layout."""
    if all(hasattr(module, name) for name in (*LAYOUT, "_apply_gate")):
        return ExpertLayout(("gate_up_proj", "up_proj", "down_proj"), module.is_transposed)
    return OWN_CODE.get(type(module).__name__)


def experts_in(module: Any) -> int:
    """How many experts ``module`` has; 0 if it has none of a known layout."""
    if layout_of(module) is None:
        return 0
    return int(getattr(module, "num_experts", None) or module.total_experts)


def turned_in_peft(module: nn.Module) -> bool:
    """Whether PEFT takes the inputs of these experts for outputs; seen in PEFT 0.21.

    It takes a weight for [E, out, in] unless the module says ``is_transposed``, which only classes
    do whose experts transformers computes.
    """
    layout = layout_of(module)
    return layout is not None and layout.transposed and not hasattr(module, "is_transposed")


def computes_experts_by(module: Any, name: str | None) -> None:
    """Let one module compute its experts by the registered function ``name``.

    The config belongs to the whole model, so the module gets a copy; ``None`` gives it the
    model's config back.
    """
    if name is None:
        module.config = module.__dict__.pop("_config_of_model", module.config)
    elif "_config_of_model" not in module.__dict__:
        module._config_of_model = module.config
        module.config = copy.copy(module.config)
        module.config._experts_implementation_internal = name


def computes_by(module: nn.Module, function: Callable[..., Any] | None) -> None:
    """Let one module compute by ``function(module, …)``; ``None`` undoes it."""
    if function is None:
        vars(module).pop("forward", None)
    else:
        vars(module)["forward"] = functools.partial(function, module)


def gated(module: Any, x: Tensor) -> Tensor:
    """[N, 2 F] → [N, F]: the experts' activation, as the model defines it."""
    y: Tensor = module._apply_gate(x)
    return y
