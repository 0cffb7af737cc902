"""Attention of sequences laid end to end, against PyTorch's kernel given one sequence at a time.

    python benchmarks/bench_attention.py [--repeats 15]

Forward and backward, causal. PyTorch's is called in float32, which on a CPU without 16-bit products
is its quickest way for bfloat16 inputs too (their conversion counts), with the heads of keys and
values repeated for those of the queries. Medians of calls in turn, as CSV; `error` is that of all
gradients and the result against float64, over PyTorch's.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from graftlm.kernels.attention import attention
from graftlm.kernels.mask_blocks import Block

CASES = [  # heads, heads of keys and values, size, sequences
    (4, 1, 256, [56] * 2),
    (4, 1, 256, [60] * 4),
    (4, 1, 256, [170] * 3),
    (4, 1, 256, [512]),
    (4, 1, 256, [2048]),
    (32, 8, 128, [64] * 8),
    (32, 32, 128, [512]),
]

Factors = tuple[Tensor, Tensor, Tensor]


def ours(factors: Factors, lengths: list[int]) -> Tensor:
    """All sequences in one call."""
    stops = torch.tensor(lengths).cumsum(0).tolist()
    parts = [Block(stop - length, stop, True) for length, stop in zip(lengths, stops, strict=True)]
    return attention(*factors, None, None, parts)


def theirs(factors: Factors, lengths: list[int]) -> Tensor:
    """One call for each, in float32, or float64 for such factors."""
    q, k, v = (t if t.dtype == torch.float64 else t.float() for t in factors)
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    pieces = zip(*(t.split(lengths, 2) for t in (q, k, v)), strict=True)
    whole = [F.scaled_dot_product_attention(*piece, is_causal=True) for piece in pieces]
    return torch.cat(whole, 2).to(factors[0].dtype)


def timed(
    way: Callable[[Factors, list[int]], Tensor], factors: Factors, lengths: list[int], dy: Tensor
) -> tuple[list[float], list[Tensor]]:
    """Seconds of both passes; the result, and the gradients."""
    started = time.perf_counter()
    y = way(factors, lengths)
    between = time.perf_counter()
    gradients = torch.autograd.grad(y, factors, dy.to(y.dtype))
    return [between - started, time.perf_counter() - between], [y.detach(), *gradients]


def error(found: list[Tensor], truth: list[Tensor]) -> float:
    """Of all of them, over their size."""
    off = sum(float((a.double() - b).square().sum()) for a, b in zip(found, truth, strict=True))
    return (off / sum(float(b.square().sum()) for b in truth)) ** 0.5


def row(case: tuple[int, int, int, list[int]], dtype: torch.dtype, repeats: int) -> list[Any]:
    """One line of the table."""
    heads, groups, size, lengths = case
    drawn = [torch.randn(1, sum(lengths), n, size).to(dtype) for n in (heads, groups, groups)]
    factors: Any = tuple(t.transpose(1, 2).detach().requires_grad_() for t in drawn)
    dy = torch.randn(1, sum(lengths), heads, size).to(dtype).transpose(1, 2)
    times: dict[Any, list[list[float]]] = {ours: [], theirs: []}
    for _ in range(repeats):
        for way, seconds in times.items():
            seconds.append(timed(way, factors, lengths, dy)[0])
    wide: Any = tuple(t.detach().double().requires_grad_() for t in factors)
    truth = timed(theirs, wide, lengths, dy)[1]
    errors = [error(timed(way, factors, lengths, dy)[1], truth) for way in times]
    mine, other = ([statistics.median(t) for t in zip(*times[way], strict=True)] for way in times)
    ratios = [b / a for a, b in zip([*mine, sum(mine)], [*other, sum(other)], strict=True)]
    described = f"{heads}/{groups} x {size}", f"{len(lengths)} x {lengths[0]}", str(dtype)[6:]
    figures = [*(1e3 * t for t in mine), *ratios, errors[0] / errors[1]]
    return [*described, *(f"{figure:.3g}" for figure in figures)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    table = csv.writer(sys.stdout)
    names = ["ms forward", "ms backward", "forward", "backward", "both", "error"]
    table.writerow(["heads", "sequences", "type", *names])
    for dtype in (torch.bfloat16, torch.float32):
        for case in CASES:
            table.writerow(row(case, dtype, arguments.repeats))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
