"""Where PEFT keeps the adapters of fused experts, and which way round older versions wrote them.

PEFT wraps the module of the experts once for each adapted parameter, in the order in which the
module defines them. The tensors of the outermost wrapper have the module's name, and those of each
further one `.base_layer` behind it:

    mlp.experts.gate_up_proj    →  mlp.experts.base_layer.lora_A.weight      if both are adapted
    mlp.experts.down_proj       →  mlp.experts.lora_A.weight

For a weight [E, out, in], versions before 0.19 took `out` for the inputs: their A is [E · r, out]
and their B [in, r · E]. The shapes tell which it is, unless the matrices are square; then the
file's other tensors do, or the version in its config.

    ΔW_e = s · B_e A_e = s · (A'_e)ᵀ (B'_e)ᵀ        A', B': the factors of such a file

For a weight [E, in, out] PEFT must be told. Llama 4 does not tell it, so there it is the other way
round: versions from 0.19 on take `in` for the outputs, and those before do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from graftlm._compat.experts import turned_in_peft
from graftlm.frozen.experts import ExpertStack
from graftlm.models.experts import parameter_order, parent_of

__all__ = ["as_peft_writes", "places_in_peft", "turned_round"]

A, B = "lora_A.weight", "lora_B.weight"
TURNED = (0, 19)
"""The first version of PEFT that writes [E · r, in] and [out, r · E]."""


def places_in_peft(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """The place of each adapted stack of experts in PEFT's file.

    Args:
        model: the model, with or without adapters.
        names: the adapted stacks.
    """
    layers: dict[str, list[str]] = {}
    for name in names:
        parent, _, leaf = name.rpartition(".")
        layers.setdefault(parent, []).append(leaf)
    places = {}
    for parent, leaves in layers.items():
        order = parameter_order(parent_of(model, f"{parent}.{leaves[0]}")[0])
        for depth, leaf in enumerate(sorted(leaves, key=order.index, reverse=True)):
            places[f"{parent}.{leaf}"] = parent + ".base_layer" * depth
    return places


def as_peft_writes(
    states: Mapping[str, Mapping[str, Tensor]], model: nn.Module, stacks: Mapping[str, ExpertStack]
) -> dict[str, dict[str, Tensor]]:
    """The tensors of each module as PEFT writes them; only those of ``stacks`` may differ."""
    return {
        name: _turned(state, stacks[name])
        if name in stacks and _taken_round(model, name)
        else dict(state)
        for name, state in states.items()
    }


def turned_round(
    states: Mapping[str, Mapping[str, Tensor]],
    model: nn.Module,
    stacks: Mapping[str, ExpertStack],
    version: str | None,
) -> dict[str, dict[str, Tensor]]:
    """The tensors of each stack with A [E · r, in] and B [out, r · E].

    Args:
        states: the tensors of each stack as they are in the file.
        model: the model.
        stacks: its stacks of experts.
        version: the version of PEFT that wrote the file, if it says so.
    """
    round_now = {name: _taken_round(model, name) for name in states}
    known = {
        turned != round_now[name]
        for name, state in states.items()
        if (turned := _is_turned(state, stacks[name])) is not None
    }
    old = known == {True} if known else _is_before(version, TURNED)
    result = {}
    for name, state in states.items():
        stack, turned = stacks[name], _is_turned(state, stacks[name])
        if turned is None and stack.shape[1] == stack.shape[2]:
            turned = old != round_now[name]
        whole = A in state and B in state and len(state[A]) % stack.shape[0] == 0
        told = stack.transposed and not round_now[name]  # the same tensors in all versions
        result[name] = _turned(state, stack) if turned and whole and not told else dict(state)
    return result


def _taken_round(model: nn.Module, name: str) -> bool:
    """Whether today's PEFT takes the inputs of this stack for its outputs."""
    return turned_in_peft(parent_of(model, name)[0])


def _is_turned(state: Mapping[str, Tensor], stack: ExpertStack) -> bool | None:
    """Whether inputs and outputs are exchanged; ``None`` if the shapes fit both, or neither."""
    _, rows, columns = stack.shape
    if rows == columns or A not in state or B not in state:
        return None
    sides = state[A].shape[-1], state[B].shape[0]
    return {(columns, rows): False, (rows, columns): True}.get(sides)


def _turned(state: Mapping[str, Tensor], stack: ExpertStack) -> dict[str, Tensor]:
    experts = stack.shape[0]
    old_A = state[A].reshape(experts, -1, state[A].shape[-1])  # [E, r, out]
    old_B = state[B].reshape(len(state[B]), -1, experts)  # [in, r, E]
    return {
        **state,
        A: old_B.permute(2, 1, 0).flatten(0, 1),
        B: old_A.permute(2, 1, 0).flatten(1, 2),
    }


def _is_before(version: Any, first: tuple[int, int]) -> bool:
    numbers = str(version or "").split(".")[:2]
    return (
        len(numbers) == 2
        and all(n.isdigit() for n in numbers)
        and (tuple(map(int, numbers)) < first)
    )
