"""A model whose parameters are not in memory: views of one NaN, which no sum can hide.

transformers loads it as it loads any model, so what it does to a model while loading is done. Its
buffers are read and real.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from graftlm.errors import ModelError
from graftlm.models.base_files import folder_read, remember_folder
from graftlm.models.lazy import Abort, LazyTensor
from graftlm.models.loading_report import captured_messages
from graftlm.models.quiet import without_progress_bars
from graftlm.models.streaming import StreamingConfig, register

__all__ = ["has_no_values", "without_values"]


def has_no_values(tensor: Tensor) -> bool:
    """Whether a tensor stands for one that is not in memory."""
    return tensor.is_meta or (tensor.numel() > 1 and not any(tensor.stride()))


def without_values(
    empty: PreTrainedModel,
    read: Callable[[str], Tensor],
    fused: Mapping[str, LazyTensor],
    joined: frozenset[str],
) -> PreTrainedModel:
    """The model as transformers loads it, without the values of its parameters.

    Args:
        empty: the model on the meta device.
        read: reads a buffer by its name.
        fused: tensors by checkpoint key that transformers joins into one parameter; they are read.
        joined: those parameters.

    Raises:
        ModelError: the checkpoint lacks a tensor that the model needs.
    """
    register()
    buffers = dict(empty.named_buffers())
    tensors: dict[str, Any] = dict(fused)
    for name, tensor in empty.state_dict().items():
        if name in buffers:
            tensors[name] = LazyTensor(functools.partial(read, name))
        elif name not in joined:
            tensors[name] = LazyTensor(functools.partial(_nan, tensor.shape))
    try:
        with without_progress_bars(), captured_messages():
            loaded: Any = type(empty).from_pretrained(
                None,
                config=empty.config,
                state_dict=tensors,
                quantization_config=StreamingConfig(None),
                dtype=torch.float32,
                output_loading_info=True,
            )
    except Abort as abort:
        raise abort.error from abort.error.__cause__
    model, found = loaded
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    if lost := sorted(set(found["missing_keys"]) - tied):
        raise ModelError(f"{type(model).__name__} cannot run from the disk: no tensor {lost[0]}")
    model.requires_grad_(False)
    if (folder := folder_read(empty)) is not None:
        remember_folder(model, folder)
    result: PreTrainedModel = model
    return result


def _nan(shape: torch.Size) -> Tensor:
    return torch.full((), float("nan")).expand(shape)
