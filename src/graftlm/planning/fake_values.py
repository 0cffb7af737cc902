"""Real values for the few tensors whose values steer the program.

A fake tensor has a shape but no values. A training step asks for values all the same: how many
tokens are supervised, where the mask is true, whether a row is padded. All of them come from the
batch, which is small and known. So integers and booleans that derive from the batch alone carry a
*shadow*, the real tensor, and every operation on shadowed tensors is also done for real. Answers
that depend on weights (is the loss finite?) are assumed: finite, true, one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["Shadows", "values_can_be_asked"]

aten = torch.ops.aten

LARGEST = 1 << 26
"""Elements; a larger mask (8192 × 8192) is not followed."""

_MASK_INDEXED = (
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index_put.default,
)
_SHAPE_FROM_VALUES = (
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
)


class Shadows:
    """The real tensors behind some of the fake ones."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._real: Any = WeakIdKeyDictionary()

    def fake(self, real: Tensor, device: torch.device) -> Tensor:
        """A fake tensor on ``device`` that remembers ``real``."""
        with self._mode:
            fake = torch.empty(real.shape, dtype=real.dtype, device=device)
        self._real[fake] = real
        return fake

    def of(self, fake: Tensor) -> Tensor | None:
        """The real tensor behind ``fake``, if it has one."""
        found: Tensor | None = self._real.get(fake)
        return found

    def scalar(self, fake: Tensor) -> bool | int | float:
        """The value of a one-element tensor: the real one, else an assumed one."""
        real = self.of(fake)
        if real is not None:
            with _disable_current_modes():
                value: bool | int | float = real.item()
            return value
        if fake.dtype == torch.bool:
            return True
        return 1.0 if fake.dtype.is_floating_point else 1

    def answer(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """For an operation whose result's shape or value depends on values: arguments it can take.

        Returns:
            ``None`` when fake tensors suffice; else the operation's new arguments.
        """
        if func in _MASK_INDEXED and any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
            for index in args[1]
        ):
            return (args[0], self._positions(args[1]), *args[2:]), kwargs
        return None

    def _positions(self, indices: Any) -> list[Tensor | None]:
        """Boolean masks as the integer positions that are true."""
        positions: list[Tensor | None] = []
        for index in indices:
            if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8):
                real = self.of(index)
                with _disable_current_modes():
                    if real is None:
                        real = torch.ones(index.shape, dtype=torch.bool)
                    where = real.nonzero(as_tuple=True)
                positions.extend(self.fake(part, index.device) for part in where)
            else:
                positions.append(index)
        return positions

    def dynamic(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation whose output shape depends on values; `NotImplemented` for others."""
        if func not in _SHAPE_FROM_VALUES:
            return NotImplemented
        device = next(a.device for a in tree_flatten((args, kwargs))[0] if isinstance(a, Tensor))
        with _disable_current_modes():
            real_args, real_kwargs = tree_map_only(Tensor, self._or_ones, (args, kwargs))
            result = func(*real_args, **real_kwargs)
        return tree_map_only(Tensor, lambda real: self.fake(real, device), result)

    def follow(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """After ``result = func(…)`` on fake tensors: do it for real where all inputs are known."""
        outputs = [out for out in tree_flatten(result)[0] if isinstance(out, Tensor)]
        tensors = [a for a in tree_flatten((args, kwargs))[0] if isinstance(a, Tensor)]
        known = all(tensor in self._real for tensor in tensors)
        if not known or not outputs or not all(_followed(out) for out in outputs):
            if func._schema.is_mutable:
                for tensor in tensors[:1]:
                    self._real.pop(tensor, None)
            return
        if torch.Tag.nondeterministic_seeded in func.tags:
            return
        with _disable_current_modes():
            real_args, real_kwargs = tree_map_only(Tensor, self.of, (args, kwargs))
            if real_kwargs.get("device") is not None:
                real_kwargs = {**real_kwargs, "device": torch.device("cpu")}
            real = func(*real_args, **real_kwargs)
        reals = [out for out in tree_flatten(real)[0] if isinstance(out, Tensor)]
        for fake, value in zip(outputs, reals, strict=True):
            self._real[fake] = value

    def _or_ones(self, fake: Tensor) -> Tensor:
        real = self.of(fake)
        return torch.ones(fake.shape, dtype=fake.dtype) if real is None else real


@contextlib.contextmanager
def values_can_be_asked() -> Iterator[None]:
    """Let transformers choose attention masks by the batch's values, as it does outside a trace.

    It takes fake tensors for a compiler's, whose values cannot be known, and then builds masks that
    a real step does without. Here they are known.
    """
    from transformers import masking_utils

    with mock.patch.object(masking_utils, "is_tracing", return_value=False):
        yield


def _followed(tensor: Tensor) -> bool:
    discrete = not tensor.dtype.is_floating_point and not tensor.dtype.is_complex
    return discrete and tensor.numel() <= LARGEST
