"""What a run needs to know of a model that the caller has loaded."""

from __future__ import annotations

from typing import Any, Literal, cast

from transformers import PreTrainedModel

from graftlm._compat.base_name import base_name
from graftlm.adapters import lora_modules
from graftlm.config import ModelConfig
from graftlm.errors import TargetError
from graftlm.frozen.embedding import FrozenEmbedding
from graftlm.frozen.modules import held_as, linear_format

__all__ = ["method_of", "model_config_of"]


def method_of(model: PreTrainedModel) -> Literal["qlora", "lora", "full"]:
    """How this model will be trained.

    Raises:
        TargetError: nothing of it can be trained.
    """
    adapters = lora_modules(model)
    if not adapters:
        if not any(p.requires_grad for p in model.parameters()):
            raise TargetError("nothing to train: call graftlm.add_lora(model, …) first")
        if any(isinstance(module, FrozenEmbedding) for module in model.modules()):
            raise TargetError(
                "embeddings in 8 bits are frozen: load the model without embeddings=int8"
            )
        return "full"
    return "qlora" if linear_format(model) is not None else "lora"


def model_config_of(model: PreTrainedModel) -> ModelConfig:
    """How a loaded model is stored, for the record. Merging onto 4 bits reads the record."""
    config = ModelConfig(
        name=base_name(model),
        dtype=cast(Any, str(model.dtype).removeprefix("torch.")),
        embeddings="keep",
    )
    held = held_as(model)
    for module in model.modules():
        if isinstance(module, FrozenEmbedding):
            # `model.dtype` is the type of the first parameter, which is an adapter's here.
            held |= {"embeddings": "int8", "dtype": str(module.dtype).removeprefix("torch.")}
    return config.model_copy(update=held)
