"""Finds adapters that would never learn, because the loss does not depend on them.

A model may read a layer's weight itself (`dt_proj` of Mamba), use its output without a gradient, or
not call it on text at all (the vision side of Gemma 3, cross attention of Mllama). An adapter there
trains nothing, and a merge would fold its initial values in.

One forward pass of a few tokens builds autograd's graph; an adapter is reached if one of its
parameters is a leaf of the graph behind the logits. No backward pass runs and no value counts, so
that an update of zero is no obstacle. The cost is that pass: on the CPU about what eight tokens
of prompt cost.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from graftlm._compat.compiled import uncompiled
from graftlm._compat.tracing import FakeTensor
from graftlm.adapters.adapted import lora_modules, token_table
from graftlm.models.probing import being_probed
from graftlm.system.placement import placement_of

__all__ = ["FAILURES", "REASON", "layer_of_experts", "leaves", "short_row", "without_gradient"]

REASON = "its adapter would never learn: on text the logits do not depend on it"
TOKENS = 8
PASSES = 4
"""At most; a model may leave out layers at random in training (`layerdrop` of OPT)."""
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
FAILURES = (AttributeError, IndexError, RuntimeError, TypeError, ValueError)
"""What a model's code raises that does not take a short row of tokens."""


def without_gradient(model: Any, adapter: str) -> tuple[list[str], str]:
    """The modules whose active adapter the logits do not depend on, and why none could be found.

    A model that cannot be asked answers with no modules: one without a token table, or one whose
    tensors have no values (on the meta device, or faked for a plan). An expert that these few
    tokens did not choose counts as reached if another expert of the same layer is.

    Args:
        model: a model with adapters.
        adapter: the name of those that are asked for; they must be active.

    Returns:
        the names, and the error of the model's forward pass; empty if it had none.
    """
    tensors = [*model.parameters(), *model.buffers()]
    if any(t.is_meta or isinstance(t, FakeTensor) for t in tensors):
        return [], ""
    ids = short_row(model)
    if ids is None:
        return [], ""
    modules = lora_modules(model, adapter)
    reached: set[str] = set()
    for _ in range(PASSES):
        try:
            with _as_in_training(model):
                logits = uncompiled(model)(input_ids=ids, use_cache=False).logits
        except FAILURES as error:
            return [], f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        behind = leaves(logits)
        reached |= {
            name
            for name, module in modules.items()
            if any(id(parameter) in behind for parameter in module.adapter_parameters().values())
            or not module.adapter_parameters()  # they are another module's
        }
        if len(reached) == len(modules):
            break
    groups = {layer_of_experts(name) for name in reached}
    return [
        name for name in modules if name not in reached and layer_of_experts(name) not in groups
    ], ""


@contextlib.contextmanager
def _as_in_training(model: Any) -> Iterator[None]:
    """The mode of training with gradients; the random generator is put back afterwards.

    Some models read a weight themselves only there (`correction_coefs` of Gemma 3n).
    """
    placement = placement_of(model)
    state = placement.rng_state()
    try:
        with being_probed(model), torch.enable_grad():
            model.train()
            yield
    finally:
        placement.set_rng_state(state)


def layer_of_experts(name: str) -> str:
    """``layers.3.experts.7.up`` → ``layers.3.experts.*.up``; other names stay as they are."""
    numbers = list(NUMBER.finditer(name))
    if len(numbers) < 2:
        return name
    last = numbers[-1]
    return f"{name[: last.start()]}*{name[last.end() :]}"


def short_row(model: nn.Module) -> Tensor | None:
    """A few token ids (1, L); ``None`` if the model names no token table."""
    table = token_table(model)
    words = getattr(table, "num_embeddings", None)
    if table is None or words is None:
        return None
    device = placement_of(table).first
    return torch.arange(1, TOKENS + 1, device=device).remainder(words)[None]


def leaves(result: Tensor) -> set[int]:
    """The identities of all leaves that need a gradient behind ``result``."""
    found: set[int] = set()
    seen: set[Any] = set()
    nodes: list[Any] = [result.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (variable := getattr(node, "variable", None)) is not None:
            found.add(id(variable))
        nodes += [before for before, _ in node.next_functions]
    return found
