"""The values that an adapter begins with: `lora.init`, one method a file.

    default          A Kaiming-uniform, B = 0                 `LoRALinear.reset`
    gaussian         A normal, B = 0                          `gaussian.py`
    orthogonal       A and B random, B A = 0                  `orthogonal.py`
    pissa            the largest singular values of W         `pissa.py`   (pissa_niter_4: quicker)
    olora            the first columns of Q R = W             `olora.py`
    loftq            the error of the 4-bit weight            `loftq.py`
    eva              the directions of the layer's inputs     `eva.py`, which also sets the ranks

PiSSA and OLoRA start from B₀ A₀ ≠ 0 and take it from the base. Here the base keeps its values: the
adapter subtracts its start, which is the same function (`LoRALinear.begin_from`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from graftlm._compat.fake import is_fake
from graftlm.adapters.adapted import lora_modules
from graftlm.adapters.initial import gaussian, loftq, olora, orthogonal, pissa
from graftlm.adapters.layers import stores_transposed
from graftlm.adapters.lora_linear import LoRALinear
from graftlm.errors import ConfigError, near_matches
from graftlm.frozen.linear import FrozenLinear, frozen_weight

if TYPE_CHECKING:
    from graftlm.adapters.merge_aware import Originals
    from graftlm.config import LoRAConfig

__all__ = ["INITS", "initialise", "require_init", "subtracts"]

INITS = ("default", "gaussian", "orthogonal", "pissa", "pissa_niter_4", "olora", "loftq", "eva")
"""The values of `lora.init`; `pissa_niter_` takes any number."""
_NITER = re.compile(r"pissa_niter_(\d+)")


def subtracts(init: str) -> bool:
    """Whether the adapter subtracts its start from the base."""
    return init == "olora" or init.startswith("pissa")


def require_init(config: LoRAConfig) -> None:
    """Refuse an initialisation that is unknown, or that the variant of adapters does not have.

    Raises:
        ConfigError: the message says which ones there are.
    """
    init = config.init
    if init not in INITS and not _NITER.fullmatch(init):
        raise ConfigError(
            f"lora.init={init!r}: expected one of {', '.join(INITS)}{near_matches(init, INITS)}"
        )
    if config.variant != "lora" and (subtracts(init) or init == "loftq"):
        raise ConfigError(
            f"lora.init={init} starts from an update that is not zero, which lora.variant="
            f"{config.variant} does not take: use lora.variant=lora, or another lora.init"
        )
    if config.target_parameters and init != "default":
        raise ConfigError(
            f"lora.init={init} has no form for experts (lora.target_parameters): use "
            "lora.init=default"
        )
    if init == "orthogonal":
        ranks = {config.rank, *config.rank_pattern.values()}
        if odd := sorted(rank for rank in ranks if rank % 2):
            raise ConfigError(f"lora.init=orthogonal needs even ranks, not {odd[0]}")


@torch.no_grad()
def initialise(
    model: nn.Module, init: str, name: str, originals: Originals | None, values: bool
) -> None:
    """Give the linear adapters called ``name`` their first values, in place.

    Args:
        model: a model with these adapters, as `Adapter.reset` left them.
        init: the setting; ``eva`` is set by `eva.py` and not here.
        name: the name of the adapters.
        originals: reads the weights from before they were quantised, for ``loftq``.
        values: false where the values follow from a file; only the tensors are made.
    """
    if init in ("default", "eva"):
        return
    for place, adapter in lora_modules(model, name).items():
        if not isinstance(adapter, LoRALinear):
            continue
        A, B = adapter.lora_A, adapter.lora_B
        if not values or A.is_meta or is_fake(A):
            if subtracts(init):
                adapter.begin_from(A, B, taken=True)
        elif init == "gaussian":
            gaussian.fill(A)
        elif init == "orthogonal":
            orthogonal.fill(A, B)
        elif init == "loftq":
            adapter.begin_from(*loftq.factors(*_both(adapter, place, originals), adapter))
        else:
            W = _weight(adapter).float()
            if init == "olora":
                start = olora.factors(W, adapter.rank)
            else:
                match = _NITER.fullmatch(init)
                start = pissa.factors(W, adapter.rank, adapter.scaling, match and int(match[1]))
            adapter.begin_from(*start, taken=True)


def _weight(adapter: LoRALinear) -> Tensor:
    """The base's weight [out, in]."""
    base = adapter.base
    stored = frozen_weight(base)
    if stored is not None:
        return stored.dequantize()
    weight: Tensor = base.weight.detach()  # type: ignore[operator]
    return weight.T if stores_transposed(base) else weight


def _both(adapter: LoRALinear, place: str, originals: Originals | None) -> tuple[Tensor, Tensor]:
    """The original weight and the stored one, in float32."""
    if not isinstance(adapter.base, FrozenLinear) or originals is None:
        raise ConfigError(
            f"lora.init=loftq starts from the error of a weight in 4 bits, and {place} is not in "
            "a weight format: use method qlora, or another lora.init"
        )
    return originals(place).float(), adapter.base.frozen.dequantize(torch.float32)
