"""A second device without hardware: tensors that say ``cuda:0``, with real values on the CPU.

Every operator passes through a dispatch mode. It computes on the CPU and refuses what a card
refuses: an operator over tensors of both devices, unless one is a number without dimensions, or the
operator moves data. So code that leaves a tensor behind fails as on a card. It also counts the
operators that would make the processor wait for the card.
"""

from __future__ import annotations

import collections
import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

from graftlm.kernels import operators
from tests.oracles.fake_gpu import FakeGPU, put_in

__all__ = ["DeviceMixError", "SecondDevice", "There", "second_device"]

aten = torch.ops.aten
CARD = torch.device("cuda:0")
CPU = torch.device("cpu")

MOVES = (aten._to_copy.default, aten.copy_.default)
"""Operators that may read one device and write the other."""
BESIDE = ("graftlm::sequence_attention", "graftlm::sequence_attention_backward")
"""Operators with an argument that stays on the host."""
WAITS = (
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten.unique_dim.default,
    aten._unique2.default,
)
"""Operators whose result, or its size, the processor must know before it goes on."""


class DeviceMixError(AssertionError):
    """An operator got tensors of both devices."""


class There(Tensor):
    """A tensor on the second device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> There:
        made: There = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=CPU,  # what torch's C++ asks, as this build has no other
        )
        made.inner = inner
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CARD

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def to(self, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        # torch's C++ takes this tensor for one on the CPU and would not move it there.
        places = (*args, kwargs.get("device"), kwargs.get("dtype"), kwargs.get("other"))
        like = [place for place in places if isinstance(place, Tensor)]
        devices = [torch.device(p) for p in places if isinstance(p, str | torch.device)]
        types = [place for place in places if isinstance(place, torch.dtype)]
        device = like[0].device if like else devices[0] if devices else CARD
        dtype = like[0].dtype if like else types[0] if types else self.dtype
        if sys._getframe(1).f_code.co_filename.endswith("clip_grad.py"):
            device = CARD  # it groups gradients by the device that torch's C++ sees
        if device == CPU:
            return torch.ops.aten._to_copy.default(self, dtype=dtype, device=CPU)
        return self if dtype == self.dtype else super().to(dtype)

    def cpu(self, *_: Any) -> Tensor:
        return self.to(CPU)

    def tolist(self) -> Any:  # type: ignore[override]
        return self.cpu().tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"There({self.inner})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _computed(func, args, kwargs or {})


class SecondDevice(TorchDispatchMode):
    """Computes all operators of both devices.

    Attributes:
        waits: how often each operator was called that brings a value from the second device, by
            name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        there = any(isinstance(leaf, There) for leaf in tree_leaves((args, kwargs)))
        back = func is aten._to_copy.default and (kwargs or {}).get("device") == CPU
        if there and (back or func in WAITS or _selects_by_mask(func, args)):
            self.waits[str(func)] += 1
        return _computed(func, args, kwargs or {})


def _selects_by_mask(func: Any, args: Any) -> bool:
    if func is not aten.index.Tensor:
        return False
    return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1])


def _made_by_autograd() -> bool:
    """Whether autograd's C++ makes a tensor. It takes the device of a slope for the CPU."""
    frame = sys._getframe(3)
    while frame.f_back is not None and frame.f_code.co_filename.endswith(
        ("_compile.py", "eval_frame.py")
    ):
        frame = frame.f_back
    return frame.f_code.co_name == "_engine_run_backward"


def _computed(func: Any, args: Any, kwargs: Any) -> Any:
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [leaf for leaf in leaves if isinstance(leaf, There)]
    strict = "fused" in func._schema.name  # an optimiser's step wants even its counters there
    here = [leaf for leaf in leaves if not isinstance(leaf, There) and (leaf.ndim or strict)]
    if there and here and func not in MOVES and func._schema.name not in BESIDE:
        shapes = [(type(leaf).__name__, tuple(leaf.shape)) for leaf in leaves]
        raise DeviceMixError(f"{func} got tensors of both devices: {shapes}")
    if kwargs.get("pin_memory"):
        kwargs = {**kwargs, "pin_memory": False}  # only a driver can lock pages
    asked = kwargs.get("device")
    if asked is not None:
        asked = torch.device(asked)
        kwargs = {**kwargs, "device": CPU if asked.type == "cuda" else asked}
    to_card = asked.type == "cuda" if asked is not None else bool(there)
    if asked is not None and (there or not leaves) and _made_by_autograd():
        to_card = True
    if func is aten.copy_.default:
        to_card = isinstance(args[0], There)
    inner_args, inner_kwargs = tree_map_only(There, lambda t: t.inner, (args, kwargs))
    if func.namespace == "graftlm":  # the CPU's kernels are not those of a card
        func_there = operators()[func._schema.name.partition("::")[2]].reference
    else:
        func_there = func
    result = func_there(*inner_args, **inner_kwargs)
    if to_card:
        result = tree_map_only(Tensor, lambda t: There(t.detach()), result)
        return return_and_correct_aliasing(func, args, kwargs, result)
    return result


@contextlib.contextmanager
def second_device() -> Iterator[SecondDevice]:
    """The second device, which `graftlm` takes for a card that this machine has."""
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    with pytest.MonkeyPatch.context() as patch:
        put_in(patch, FakeGPU())
        patch.setattr("torch.cuda._lazy_init", lambda: None)
        patch.setattr("torch.cuda.manual_seed_all", lambda seed: None)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        # `torch.tensor(…, device=…)` then makes a tensor here and moves it, by an operator.
        torch._C._set_only_lift_cpu_tensors(True)
        try:
            with SecondDevice() as mode:
                yield mode
        finally:
            torch._C._set_only_lift_cpu_tensors(False)
            torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
