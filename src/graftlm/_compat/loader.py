"""transformers' loader of weights, which graftlm drives by a quantiser of its own.

Seen in transformers 5.23: the module `core_model_loading`, the methods
`_process_model_before_weight_loading` and `_process_model_after_weight_loading` of a quantiser,
`_is_hf_initialized` on a parameter, and `_is_quantized` in a config.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import (
    Concatenate,
    ConversionOps,
    Interleave,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)
from transformers.quantizers.base import HfQuantizer

__all__ = [
    "Concatenate",
    "ConversionOps",
    "Interleave",
    "LoaderPlugin",
    "MergeModulelist",
    "WeightConverter",
    "WeightRenaming",
    "forget_quantized",
    "mark_filled",
    "rename_source_key",
]


class LoaderPlugin(HfQuantizer):
    """A quantiser that is called before and after the loader fills a model."""

    def before_loading(self, model: PreTrainedModel) -> None:
        """The model is empty."""

    def after_loading(self, model: PreTrainedModel) -> None:
        """The model is filled."""

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        self.before_loading(model)

    def _process_model_after_weight_loading(
        self, model: PreTrainedModel, **_: Any
    ) -> PreTrainedModel:
        self.after_loading(model)
        return model


def mark_filled(parameter: nn.Parameter) -> None:
    """Tell the loader that this parameter needs no initial values."""
    parameter._is_hf_initialized = True  # type: ignore[attr-defined]


def forget_quantized(model: nn.Module) -> None:
    """Take the mark of a quantised model off the configs, so that it can be saved and changed."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config.__dict__.pop("_is_quantized", None)
