"""Finds adapted layers that the model does not call but whose weight it reads itself.

    live      y = f(W)         the adapter is never asked (`dt_proj` of Mamba)
    merged    y = f(W + Δ)     folded in, it would act

`add_lora` puts no adapter there; other tools do. A merge leaves such updates out, so that it does
what the adapter does, and says which. A layer that is not called on text and not read either (the
vision side of Gemma 3) is merged as any other.

Which layers are called shows a forward pass without values. If one is not, the model runs with all
weights one small number, and then with NaN in the layers in question: NaN comes out if they are
read.
"""

from __future__ import annotations

import contextlib
import functools
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graftlm.adapters.adapted import adapted_modules
from graftlm.adapters.peft_format import load_adapter
from graftlm.adapters.several import adapters_at
from graftlm.adapters.without_gradient import layer_of_experts
from graftlm.errors import GraftLMError
from graftlm.models.named_weights import NamedWeights, named_weights
from graftlm.models.probing import being_probed
from graftlm.models.streamed import StreamedModel
from graftlm.models.without_values import has_no_values

__all__ = ["weights_read_directly"]

TOKENS = 8
SMALL = 0.01
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def weights_read_directly(model: Any, adapter: str | Path, folder: Path) -> tuple[list[str], str]:
    """The adapted layers of ``model`` that it does not call but whose weight it reads.

    Args:
        model: the base on the meta device, with the adapter.
        adapter: the adapter's folder.
        folder: the base's folder.

    Returns:
        the names, and why they could not be found; empty if they could.
    """
    try:
        silent = _not_called(model)
    except Exception:  # a model's code that needs values fails in any way
        silent = ["unknown"]
    if not silent:
        return [], ""
    try:
        return _by_values(named_weights(folder), Path(adapter)), ""
    except GraftLMError:
        raise
    except Exception as error:
        return [], f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _by_values(weights: NamedWeights, adapter: Path) -> list[str]:
    model: Any = StreamedModel(weights.empty, weights).model
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # others do not multiply views of one number
    load_adapter(model, adapter)
    adapted = adapted_modules(model)
    for module in model.modules():
        _fill(module, SMALL)
    silent = _not_called(model)
    if not silent or not _finite(model):
        return []
    kinds: dict[str, list[str]] = {}
    for name in silent:
        kinds.setdefault(NUMBER.sub("*", name), []).append(name)
    read: list[str] = []
    for names in kinds.values():
        for name in names:
            _fill(adapted[name].base, float("nan"))
        if not _finite(model):
            read += names
        for name in names:
            _fill(adapted[name].base, SMALL)
    return read


def _fill(module: nn.Module, value: float) -> None:
    """Make every parameter of ``module`` without values one number; it takes no memory."""
    for key, parameter in list(module.named_parameters(recurse=False)):
        if has_no_values(parameter):
            same = torch.full((), value).expand(parameter.shape)
            setattr(module, key, nn.Parameter(same, requires_grad=False))


def _not_called(model: Any) -> list[str]:
    """The adapted layers that a forward pass does not call.

    An expert that was not chosen counts as called if another expert of the same layer was.
    """
    called: set[str] = set()
    adapted = {
        name: there
        for name, there in adapted_modules(model).items()
        if all(one.variant != "trained" for one in adapters_at(there))  # their weight is read
    }
    with contextlib.ExitStack() as hooks:
        for name, module in adapted.items():
            note = functools.partial(_note, called, name)
            hooks.callback(module.register_forward_pre_hook(note).remove)
        _logits(model)
    groups = {layer_of_experts(name) for name in called}
    return [name for name in adapted if layer_of_experts(name) not in groups]


def _note(called: set[str], name: str, *_: Any) -> None:
    called.add(name)


def _finite(model: Any) -> bool:
    return bool(_logits(model).isfinite().all())


def _logits(model: Any) -> Tensor:
    """The logits of a few tokens."""
    table = model.get_input_embeddings()
    words = model.config.get_text_config().vocab_size
    device = next(table.parameters()).device
    ids = torch.arange(1, TOKENS + 1, device=device).remainder(words)[None]
    with being_probed(model):
        result: Tensor = model(input_ids=ids, use_cache=False).logits
    return result
