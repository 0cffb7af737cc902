"""Gradient checkpointing: the activations of a layer are computed again in the backward pass."""

from __future__ import annotations

import inspect
from typing import Any

from graftlm._compat.checkpointing import chooses_its_own_kind
from graftlm.config import RunConfig
from graftlm.errors import ConfigError
from graftlm.system.placement import Placement

__all__ = ["recompute_activations", "require_card"]


def require_card(config: RunConfig, placement: Placement) -> None:
    """Refuse settings that keep in host memory what a run on the processor has there anyway.

    Raises:
        ConfigError: the run is on the processor, and such a setting is on.
    """
    wrong = {
        f"model.offload={config.model.offload}": config.model.offload == "layers",
        "train.offload_checkpoints=true": config.train.offload_checkpoints,
    }
    if placement.runs_on_cpu and any(wrong.values()):
        raise ConfigError(
            [
                f"{what} does nothing on {placement.name}, whose memory is the host's: leave it out"
                for what, is_wrong in wrong.items()
                if is_wrong
            ]
        )


def recompute_activations(model: Any, *, offload: bool = False) -> None:
    """Switch on gradient checkpointing for a transformers model, in place.

    Only the input of each layer is kept. It is the non-reentrant kind, which works even if the
    first layer's input needs no gradient. transformers makes that input need one, for the other
    kind; that is taken back, since each layer below the first adapter would be computed and
    differentiated once more for nothing, and a model that changes its embeddings in place (BLT)
    would fail.

    Args:
        model: a transformers model.
        offload: keep these inputs in page-locked host memory until the backward pass.

    Raises:
        ConfigError: the model cannot recompute, or the installed transformers cannot offload.
    """
    if not getattr(model, "supports_gradient_checkpointing", True):
        raise ConfigError(
            f"train.gradient_checkpointing: {type(model).__name__} cannot recompute its "
            "activations. Set it to false; a smaller train.micro_batch_tokens saves memory too."
        )
    # transformers 5.23 renamed the switch, and learned to offload.
    enable = getattr(model, "activation_checkpointing_enable", None)
    if offload:
        if enable is None or "offload" not in inspect.signature(enable).parameters:
            raise ConfigError("train.offload_checkpoints=true needs transformers 5.23 or newer")
        enable({"use_reentrant": False}, offload=True)
    else:
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    if not chooses_its_own_kind(model):
        model.disable_input_require_grads()
