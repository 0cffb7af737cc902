"""Real values for the tensors that control a step.

A fake tensor has a shape but no values. A step needs a few values: the number of supervised tokens,
the pairs that a mask allows, the tokens of each expert. These are small tensors of integers and
booleans, and most derive from the batch alone. They stay real, and so do all results computed from
them alone. Weights, activations and all results that involve them are fake.

The choices of a router depend on activations, so a plan cannot know them. It assumes an even
distribution: entry i of the result chooses number i mod n. Any other value of a fake tensor is
assumed to be one, or true.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from graftlm._compat.torch_operator import GROUPED_PRODUCT, INDEXED_WRITES, argument_names
from graftlm._compat.tracing import (
    ASKS_FOR_VALUES,
    FakeTensor,
    modes_off,
    tree_leaves,
    tree_map_only,
)

__all__ = ["StepValues"]

aten = torch.ops.aten

STEERING = (torch.bool, torch.int16, torch.int32, torch.int64)
"""Types of real tensors. The 8-bit codes of stored weights are not among them."""
LARGEST = 1 << 26
"""Maximum elements of a real tensor; a larger mask (8192 × 8192) is fake."""
LARGEST_FLOATS = 1 << 20
"""The same for floating-point numbers computed from integers, such as counts of tokens."""

_INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, *INDEXED_WRITES)
_CONVOLVES = (aten.convolution.default, aten.convolution_backward.default)
_TAKES_ALL = (aten.argmax.default, aten.argmin.default)
"""Choose among all elements unless they are given a dimension."""
_SORTS = (aten.topk.default, aten.sort.default, aten.sort.stable, aten.multinomial.default)
_CHOOSES = (*_SORTS, *_TAKES_ALL, aten.max.dim, aten.min.dim)


class StepValues:
    """Runs operators on fake and real tensors together, under the fake tensor mode."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._fakes: Any = WeakIdKeyDictionary()

    def scalar(self, tensor: Tensor) -> bool | int | float:
        """The value of a one-element tensor; an assumed value if the tensor is fake."""
        if _is_real(tensor):
            with modes_off():
                value: bool | int | float = tensor.item()
            return value
        if tensor.dtype == torch.bool:
            return True
        return 1.0 if tensor.dtype.is_floating_point else 1

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """``func(*args, **kwargs)``, real if its result controls the step."""
        if func in _INDEXED:
            args = (args[0], self._positions(args[1]), *args[2:])
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        known = all(_is_real(tensor) for tensor in tensors)
        fakes = tree_map_only(Tensor, self._fake, (args, kwargs))
        try:
            result = self._fake_run(func, *fakes)
        except ASKS_FOR_VALUES:
            assumed = tree_map_only(Tensor, _value_or_ones, (args, kwargs))
            result = _really(func, *assumed)
            return tree_map_only(Tensor, self._unless_steering, result)
        if known and _stays_real(func, result, from_tensors=bool(tensors)):
            return _really(func, args, kwargs)
        if func in _CHOOSES:
            return tree_map_only(Tensor, _spread(_choices(func, args, kwargs)), result)
        return result

    def _fake_run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """``func`` on fake tensors, also where torch's own shape function asks for more.

        That of a convolution asks the device's library, which may be absent; that of a product of
        groups takes only bfloat16.
        """
        stand_in: dict[str, Any] = {}
        if func in _CONVOLVES:
            stand_in["device"] = torch.device("cpu")
        elif func is GROUPED_PRODUCT:
            stand_in["dtype"] = torch.bfloat16
        else:
            return func(*args, **kwargs)
        true = {name: getattr(args[0], name) for name in stand_in}

        def changed(settings: Any) -> Any:
            return lambda t: torch.empty_like(t, **settings) if t.is_floating_point() else t

        args, kwargs = tree_map_only(Tensor, changed(stand_in), (args, kwargs))
        return tree_map_only(Tensor, changed(true), func(*args, **kwargs))

    def _fake(self, tensor: Tensor) -> Tensor:
        """A fake stand-in on the planned device, the same one each time."""
        if not _is_real(tensor):
            return tensor
        fake: Tensor | None = self._fakes.get(tensor)
        if fake is None:
            fake = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device=self._device
            )
            self._fakes[tensor] = fake
        return fake

    def _unless_steering(self, tensor: Tensor) -> Tensor:
        return tensor if tensor.dtype in STEERING else self._fake(tensor)

    def _positions(self, indices: Any) -> list[Tensor | None]:
        """Boolean masks as the integer positions that are true."""
        positions: list[Tensor | None] = []
        for index in indices:
            if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8):
                with modes_off():
                    positions.extend(_value_or_ones(index).nonzero(as_tuple=True))
            else:
                positions.append(index)
        return positions


def _is_real(tensor: Tensor) -> bool:
    return not isinstance(tensor, FakeTensor) and not tensor.is_meta


def _value_or_ones(tensor: Tensor) -> Tensor:
    if _is_real(tensor):
        return tensor
    with modes_off():
        return torch.ones(tensor.shape, dtype=tensor.dtype)


def _really(func: Any, args: Any, kwargs: Any) -> Any:
    if kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    with modes_off():
        if func is aten.histc.default:  # the CPU has none for integers
            return func(args[0].float(), *args[1:], **kwargs).to(args[0].dtype)
        result = func(*args, **kwargs)
        if func in (aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default):
            result.zero_()  # so that uninitialised memory is not used as an index
    return result


def _stays_real(func: Any, result: Any, from_tensors: bool) -> bool:
    if torch.Tag.nondeterministic_seeded in func.tags:
        return False
    outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
    return bool(outputs) and all(
        out.numel() <= (LARGEST if out.dtype in STEERING else LARGEST_FLOATS if from_tensors else 0)
        and out.dtype in (*STEERING, torch.float32, torch.float64, torch.bfloat16, torch.float16)
        for out in outputs
    )


def _choices(func: Any, args: Any, kwargs: Any) -> int:
    """The number of choices of ``func``: the size of the dimension it reduces."""
    names = argument_names(func)
    given = dict(zip(names, args, strict=False)) | kwargs
    dim = given.get("dim", None if func in _TAKES_ALL else -1)
    return int(args[0].numel() if dim is None else args[0].shape[dim])


def _spread(choices: int) -> Any:
    def stand_in(tensor: Tensor) -> Tensor:
        if tensor.dtype != torch.int64 or tensor.numel() > LARGEST:
            return tensor
        with modes_off():
            return (torch.arange(tensor.numel()) % max(choices, 1)).view(tensor.shape)

    return stand_in
