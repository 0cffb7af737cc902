"""Which updates of an adapter a merge on disk leaves out, because they have no effect.

`weights_read_directly` says which those are. Most models can be asked without weights, on the meta
device. One that needs values (where tokens choose experts) runs from the disk instead, with all
weights one small number; they take no memory.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graftlm.adapters.peft_format import load_adapter
from graftlm.adapters.weights_read_directly import SMALL, weights_read_directly
from graftlm.errors import GraftLMError
from graftlm.models.named_weights import NamedWeights, named_weights
from graftlm.models.streamed import StreamedModel
from graftlm.models.without_values import has_no_values

__all__ = ["left_out_on_disk"]


def left_out_on_disk(model: Any, adapter: Path, folder: Path) -> tuple[list[str], str]:
    """The adapted layers whose update has no effect, and why they could not be found.

    Args:
        model: the base on the meta device, with the adapter.
        adapter: the adapter's folder.
        folder: the base's folder.
    """
    for use_cache in (True, False):  # without one, most read the values of positions
        with contextlib.suppress(Exception):  # a model's code that needs values fails in any way
            return weights_read_directly(model, use_cache=use_cache), ""
    try:
        return weights_read_directly(_of_one_number(named_weights(folder), adapter)), ""
    except GraftLMError:
        raise
    except Exception as error:
        return [], f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _of_one_number(weights: NamedWeights, adapter: Path) -> Any:
    model: Any = StreamedModel(weights.empty, weights).model
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # others do not multiply views of one number
    load_adapter(model, adapter)
    for module in model.modules():
        for key, parameter in list(module.named_parameters(recurse=False)):
            if has_no_values(parameter):
                same = torch.full((), SMALL).expand(parameter.shape)
                setattr(module, key, nn.Parameter(same, requires_grad=False))
    return model
