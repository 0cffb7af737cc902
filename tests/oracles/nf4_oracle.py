"""What NF4 must give: bitsandbytes itself, a float64 truth, and weights hard to get right.

The kernels' tests and `benchmarks/bitidentity.py` use this file too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import bitsandbytes.functional as bnb
import torch
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from torch import Tensor

from graftlm.kernels.nf4.weight import NF4Weight

T = TypeVar("T")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
SHAPES = (
    (1,),
    (2,),
    (63,),
    (64,),
    (65,),
    (7, 9),
    (33, 31),
    (8, 64),
    (48, 48),
    (3, 5, 64),
    (129, 65),
)
MANY_BLOCKS = ((96, 257), (257, 130), (300, 320), (2, 16385))


# --- bitsandbytes, the live oracle --------------------------------------------------------------


def bnb_quantize(w: Tensor, block_size: int, double_quant: bool) -> NF4Weight:
    """What bitsandbytes stores for ``w``, in our container."""
    packed, state = bnb.quantize_4bit(
        w, blocksize=block_size, compress_statistics=double_quant, quant_type="nf4"
    )
    return NF4Weight(
        codes=packed.view(-1),
        absmax=state.absmax,
        nested_absmax=state.state2.absmax if double_quant else None,
        offset=state.offset if double_quant else None,
        shape=tuple(w.shape),
        dtype=w.dtype,
        block_size=block_size,
    )


def bnb_state(w4: NF4Weight) -> bnb.QuantState:
    """The `QuantState` that goes with ``w4.codes``."""
    nested = None
    if w4.nested_absmax is not None:
        nested = bnb.QuantState(
            absmax=w4.nested_absmax,
            blocksize=256,
            code=bnb.create_dynamic_map(),
            dtype=torch.float32,
        )
    return bnb.QuantState(
        absmax=w4.absmax,
        shape=torch.Size(w4.shape),
        code=bnb.get_4bit_type("nf4", device="cpu"),
        blocksize=w4.block_size,
        quant_type="nf4",
        dtype=w4.dtype,
        offset=w4.offset,
        state2=nested,
    )


def bnb_dequantize(w4: NF4Weight, dtype: torch.dtype) -> Tensor:
    """The dense weight by bitsandbytes.

    Its AVX-512 code takes the scales of the wrong blocks where a row is no whole number of blocks
    (0.50.2: off by 0.8 on an 8 × 48 normal weight in blocks of 64), and refuses scalars. There its
    own generic operator answers instead.
    """
    state = bnb_state(w4)
    state.dtype = dtype
    # The generic operator is compiled for each shape anew, which is slow and not under test.
    with torch.compiler.set_stance("force_eager"):
        if w4.shape and w4.shape[-1] % w4.block_size == 0:
            dense = bnb.dequantize_4bit(w4.codes.view(-1, 1), state)
            return dense.reshape(w4.shape)  # a vector comes back as a row
        scales = state.absmax
        if w4.nested_absmax is not None:
            scales = bnb.dequantize_blockwise(scales, state.state2) + state.offset
        dense = _dequantize_4bit_compute(
            w4.codes, scales, state.code, w4.block_size, (w4.numel,), dtype
        )
        return dense.reshape(w4.shape)


def differing_parts(a: NF4Weight, b: NF4Weight) -> list[str]:
    """Names of the parts in which two stored weights differ by even one bit."""
    return [
        field.name
        for field in dataclasses.fields(NF4Weight)
        if not _same(getattr(a, field.name), getattr(b, field.name))
    ]


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equality of type, shape and bits: 0 and -0 differ, a NaN equals itself."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(
        a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8)
    )


def _same(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return same_bits(a, b)
    return a is b or (type(a) is type(b) and a == b)


# --- float64, the truth ------------------------------------------------------------------------


def unpack(w4: NF4Weight) -> Tensor:
    """int64 ``[numel]``: one code an element."""
    return torch.stack([w4.codes >> 4, w4.codes & 15], dim=1).view(-1)[: w4.numel].long()


def blocks_of(values: Tensor, block_size: int) -> list[Tensor]:
    return list(values.reshape(-1).double().split(block_size))


def distance_to_nearest_level(w: Tensor, w4: NF4Weight, levels: Tensor) -> Tensor:
    """float64 ``[numel]``: how much farther the chosen level is than the nearest one.

    In units of the block's maximum; at most a rounding error if the codes are right.
    """
    excess = []
    codes = unpack(w4).split(w4.block_size)
    for values, chosen in zip(blocks_of(w, w4.block_size), codes, strict=True):
        scaled = values / max(float(values.abs().max()), math.ulp(0.0))
        distances = (scaled.view(-1, 1) - levels.double()).abs()
        excess.append(distances.gather(1, chosen.view(-1, 1)).view(-1) - distances.amin(dim=1))
    return torch.cat(excess)


# --- weights that are hard to get right ---------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    kind: str
    weight: Tensor
    block_size: int
    double_quant: bool

    def __str__(self) -> str:
        dtype = str(self.weight.dtype).removeprefix("torch.")
        shape = "x".join(map(str, self.weight.shape))
        return (
            f"{self.kind}-{shape}-{dtype}-{self.block_size}-{'dq' if self.double_quant else 'sq'}"
        )


def near_thresholds(numel: int, block_size: int, random: torch.Generator) -> Tensor:
    """Values on the midpoints between levels, times a maximum, and up to three floats away."""
    levels = bnb.get_4bit_type("nf4", device="cpu")
    thresholds = (levels[:-1] + levels[1:]) / 2
    pick = torch.randint(0, 15, (numel,), generator=random)
    blocks = -(-numel // block_size)
    peaks = torch.rand(blocks, generator=random) + 0.5
    peaks *= 2.0 ** torch.randint(-14, 14, (blocks,), generator=random)
    scale = peaks.repeat_interleave(block_size)[:numel]
    w = thresholds[pick] * scale
    towards = torch.where(torch.rand(numel, generator=random) < 0.5, -math.inf, math.inf)
    for _ in range(3):
        move = torch.rand(numel, generator=random) < 0.5
        w = torch.where(move, torch.nextafter(w, towards), w)
    first = torch.arange(0, numel, block_size)
    w[first] = scale[first]
    return w


def _normal(n: int, block_size: int, random: torch.Generator) -> Tensor:
    return torch.randn(n, generator=random) * 0.02


def _uniform(n: int, block_size: int, random: torch.Generator) -> Tensor:
    return torch.rand(n, generator=random) * 2 - 1


def _heavy_tails(n: int, block_size: int, random: torch.Generator) -> Tensor:
    return torch.randn(n, generator=random) ** 5


def _zero_blocks(n: int, block_size: int, random: torch.Generator) -> Tensor:
    blocks = -(-n // block_size)
    keep = (torch.rand(blocks, generator=random) < 0.5).repeat_interleave(block_size)[:n]
    return torch.randn(n, generator=random) * keep


def _all_zero(n: int, block_size: int, random: torch.Generator) -> Tensor:
    signs = torch.where(torch.rand(n, generator=random) < 0.5, -1.0, 1.0)
    return signs * 0.0


def _constant(n: int, block_size: int, random: torch.Generator) -> Tensor:
    return torch.full((n,), float(torch.randn(1, generator=random)))


def _one_hot(n: int, block_size: int, random: torch.Generator) -> Tensor:
    w = torch.zeros(n)
    w[torch.randint(0, n, (1,), generator=random)] = -3.0
    return w


def _many_scales(n: int, block_size: int, random: torch.Generator) -> Tensor:
    blocks = -(-n // block_size)
    scale = 10.0 ** (torch.rand(blocks, generator=random) * 8 - 4)
    return torch.randn(n, generator=random) * scale.repeat_interleave(block_size)[:n]


def _tiny(n: int, block_size: int, random: torch.Generator) -> Tensor:
    """Around the smallest normal float32, mostly below it; float16 gets its own smallest."""
    return torch.randn(n, generator=random) * 10.0 ** torch.randint(
        -44, -36, (n,), generator=random
    )


def _tiny_half(n: int, block_size: int, random: torch.Generator) -> Tensor:
    return torch.randn(n, generator=random) * 2.0**-22


def _huge(n: int, block_size: int, random: torch.Generator) -> Tensor:
    """Near the largest value; of float16 where the mean of several maxima would overflow."""
    largest = 3.4e38 if n <= block_size else 65504.0
    return (torch.rand(n, generator=random) * 2 - 1) * largest


KINDS: dict[str, Callable[[int, int, torch.Generator], Tensor]] = {
    "normal": _normal,
    "thresholds": near_thresholds,
    "uniform": _uniform,
    "heavy": _heavy_tails,
    "zero-blocks": _zero_blocks,
    "many-scales": _many_scales,
    "zero": _all_zero,
    "constant": _constant,
    "one-hot": _one_hot,
    "tiny": _tiny,
    "tiny-half": _tiny_half,
    "huge": _huge,
}


def cases(count: int, seed: int = 0) -> Iterator[Case]:
    """A reproducible run through kinds, types, shapes, block sizes and both forms of the scales.

    Kinds and types go round, the rest is drawn; every fourth weight has hundreds of blocks, so that
    the second level of the scales has more than one group.
    """
    random = torch.Generator().manual_seed(seed)

    def draw(options: Sequence[T]) -> T:
        return options[int(torch.randint(0, len(options), (1,), generator=random))]

    kinds = list(KINDS)
    for index in range(count):
        kind = kinds[index % len(kinds)]
        dtype = DTYPES[index // len(kinds) % len(DTYPES)]
        many_blocks = draw((True, False, False, False))
        shape = draw(MANY_BLOCKS if many_blocks else SHAPES)
        block_size = draw(BLOCK_SIZES[:2] if many_blocks else BLOCK_SIZES)
        values = KINDS[kind](math.prod(shape), block_size, random)
        limit = torch.finfo(dtype).max
        weight = values.clamp(-limit, limit).to(dtype).reshape(shape)
        yield Case(kind, weight, block_size, double_quant=draw((True, True, False)))
