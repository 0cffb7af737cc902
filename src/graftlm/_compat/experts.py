"""How transformers' models compute their experts; seen in transformers 5.23.

`transformers.integrations.moe` marks the classes whose experts it can compute in several ways: it
gives their modules the attributes of `LAYOUT` and the method `_apply_gate`. The way is the function
that is registered in `ALL_EXPERTS_FUNCTIONS` under the name in the module's own
`config._experts_implementation_internal`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

__all__ = ["computes_experts_by", "gated", "is_experts", "register_experts_function"]

LAYOUT = ("has_gate", "has_bias", "has_post_expert_norm", "is_transposed", "config")


def register_experts_function(name: str, function: Callable[..., Tensor]) -> None:
    """Make a way of computing experts known under ``name``."""
    ALL_EXPERTS_FUNCTIONS.register(name, function)


def is_experts(module: nn.Module) -> bool:
    """Whether transformers lets somebody else compute the experts in ``module``."""
    return all(hasattr(module, name) for name in (*LAYOUT, "_apply_gate"))


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


def gated(module: Any, x: Tensor) -> Tensor:
    """[N, 2 F] → [N, F]: the experts' activation, as the model defines it."""
    y: Tensor = module._apply_gate(x)
    return y
