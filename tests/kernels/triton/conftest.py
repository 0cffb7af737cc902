"""Lets Triton's interpreter do with bfloat16 what a card does.

Seen in Triton 3.7: the interpreter keeps bfloat16 as the bits of a 16-bit integer. It multiplies
those integers in a product, converts integers to them by value, and cuts off a float32 where a card
rounds to the nearest. Here PyTorch converts, and a product multiplies in float32, in which products
of such numbers are exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch


def widened(data: Any) -> Any:
    """float32 from the bits of bfloat16."""
    return (data.astype(np.uint32) << 16).view(np.float32)


def narrowed(data: Any) -> Any:
    """The bits of bfloat16 from numbers, rounded to the nearest."""
    rounded = torch.from_numpy(np.ascontiguousarray(data)).to(torch.float32).bfloat16()
    return rounded.view(torch.int16).numpy().view(np.uint16)


@pytest.fixture(autouse=True)
def bfloat16_as_on_a_card() -> Iterator[None]:
    tl = pytest.importorskip("triton.language", reason="Triton has no build for this system")
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    cast = builder.cast_impl

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        source, target = src.dtype.scalar, dst_type.scalar
        if tl.bfloat16 not in (source, target) or source == target:
            return cast(self, src, dst_type)
        data = widened(src.data) if source == tl.bfloat16 else src.data
        if target == tl.bfloat16:
            return interpreter.TensorHandle(narrowed(data), target)
        return interpreter.TensorHandle(data.astype(interpreter._get_np_dtype(dst_type)), target)

    def create_dot(self: Any, a: Any, b: Any, d: Any, *_: Any) -> Any:
        left, right = (
            widened(one.data) if one.dtype.scalar == tl.bfloat16 else one.data for one in (a, b)
        )
        total = np.matmul(left, right, dtype=d.data.dtype) + d.data
        return interpreter.TensorHandle(total, d.dtype.scalar)

    def create_fp_to_fp(self: Any, src: Any, dst_type: Any, _: Any) -> Any:
        return cast_impl(self, src, dst_type)

    names = ("create_si_to_fp", "create_ui_to_fp", "create_fp_to_si", "create_fp_ext")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "cast_impl", cast_impl)
        patch.setattr(builder, "create_dot", create_dot)
        patch.setattr(builder, "create_fp_to_fp", create_fp_to_fp)
        for name in (*names, "create_fp_trunc"):
            patch.setattr(builder, name, cast_impl)
        yield
