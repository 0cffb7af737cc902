"""Judges the tensors in an adapter's file that belong to no adapter.

PEFT saves a copy of an embedding beside an adapter. An untrained copy equals the model's own weight
and may be left out; a trained or resized one may not. A model without values in memory (on the meta
device, or read from the disk while it runs) is compared by its folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from graftlm.adapters.peft_fit import PREFIX
from graftlm.models.base_files import folder_read
from graftlm.models.named_weights import named_weights
from graftlm.models.without_values import has_no_values

__all__ = ["stray_tensors"]

COPY_KEY = re.compile(r"(?P<module>.+?)(\.base_layer)?\.weight")


def stray_tensors(
    others: Mapping[str, Tensor], modules: Mapping[str, nn.Module], model: nn.Module
) -> list[str]:
    """The problems with the tensors ``others`` of no adapter; untrained copies are none.

    Args:
        others: the tensors by their key without PEFT's prefix.
        modules: the model's modules, without adapters.
        model: the model.
    """
    judged = (_problem(key, tensor, modules, model) for key, tensor in others.items())
    return [problem for problem in judged if problem is not None]


def _problem(
    key: str, tensor: Tensor, modules: Mapping[str, nn.Module], model: nn.Module
) -> str | None:
    match = COPY_KEY.fullmatch(key)
    name = match["module"] if match else ""
    weight = getattr(modules.get(name), "weight", None)
    if not isinstance(weight, Tensor):
        return f"unexpected: {PREFIX}{key}"
    own = weight[: len(tensor)]
    if own.shape == tensor.shape:
        if has_no_values(weight):
            folder = folder_read(model)
            if folder is None:
                return f"unexpected: {PREFIX}{key}: the model has no weights to compare it with"
            own = named_weights(folder)(f"{name}.weight")[: len(tensor)].to(weight.dtype)
        if torch.equal(own.detach().cpu(), tensor.to(weight.dtype)):
            return None
    return (
        f"unexpected: {PREFIX}{key} {list(tensor.shape)} differs from the model's own weight "
        f"{list(weight.shape)}, and adapter_config.json does not name it in modules_to_save"
    )
