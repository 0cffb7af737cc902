"""Causal attention of sequences that lie end to end, each by itself: no mask, no padding.

    y_i = Σ_j softmax_j(s · q_i · k_j) v_j       j in the sequence of i,  i − W < j ≤ i

W is the window, if there is one. The borders of the sequences are a tensor on the host, so that
nobody has to ask the device for them, and compiled code is not made anew for others. A card
computes it by PyTorch's flash attention for sequences of various lengths (arXiv 2307.08691);
`reference/attention.py` has the equations.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from graftlm.errors import ModelError
from graftlm.kernels.attention import require_result
from graftlm.kernels.operator import Case, Operator
from graftlm.kernels.products import draw
from graftlm.kernels.reference import attention as reference

__all__ = ["has_kernel", "sequence_attention"]


def sequence_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, borders: Tensor, window: int = 0
) -> Tensor:
    """Attention within each sequence, differentiable in q, k and v.

    Args:
        q: (1, H, T, D), the positions of all sequences.
        k: (1, G, T, D); each of its G heads serves H / G neighbouring ones of q.
        v: (1, G, T, D).
        scale: s.
        borders: (S + 1,), on the host: where each sequence starts, and T: 0 < … < T.
        window: W, positions that a position attends to at most, itself included; 0: all before it.

    Returns:
        (1, H, T, D) in the type of q.

    Raises:
        ModelError: sizes do not fit each other, or the borders are not those of T positions.
    """
    y: Tensor = _sequence_attention(q, k, v, scale, borders, window)[0]
    return y


def has_kernel(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether a kernel, and not the reference, would compute it, with any window."""
    return _sequence_attention.has_kernel(q, k, v, 1.0, q, 0)


def _check(q: Tensor, k: Tensor, v: Tensor, scale: float, borders: Tensor, window: int) -> None:
    fits = q.ndim == k.ndim == 4 and k.shape == v.shape and len(q) == len(k) == 1
    if fits:
        (_, heads, length, size), groups = q.shape, k.shape[1]
        fits = k.shape[2:] == (length, size) and groups > 0 and heads % groups == 0
        fits = fits and borders.ndim == 1 and len(borders) > 1
    if fits:
        places = borders.tolist()
        growing = all(a < b for a, b in itertools.pairwise(places))
        fits = growing and (places[0], places[-1]) == (0, length)
    if not fits or window < 0:
        raise ModelError(
            f"q is {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}, the borders "
            f"{borders.tolist()} and the window {window}: expected (1, H, T, D), (1, G, T, D) "
            "twice, H a multiple of G, borders 0 < … < T, and a window of 0 or more"
        )


def _check_backward(dy: Tensor, *rest: Any) -> None:
    q, k, v, y, lse, scale, borders, window = rest
    _check(q, k, v, scale, borders, window)
    require_result(dy, q, y, lse)


def _blocks(borders: Tensor, window: int, q: Tensor) -> tuple[Tensor | None, list[int]]:
    """The mask and the blocks of `reference.forward`; a window needs a mask."""
    places = borders.tolist()
    blocks = [
        number
        for start, stop in itertools.pairwise(places)
        for number in (start, stop, int(not window))
    ]
    if not window:
        return None, blocks
    place = torch.arange(places[-1], device=q.device)
    back = place[:, None] - place
    return ((back >= 0) & (back < window))[None, None], blocks


def _reference(
    q: Tensor, k: Tensor, v: Tensor, scale: float, borders: Tensor, window: int
) -> tuple[Tensor, Tensor]:
    mask, blocks = _blocks(borders, window, q)
    return reference.forward(q, k, v, mask, scale, blocks)


def _reference_backward(
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    y: Tensor,
    lse: Tensor,
    scale: float,
    borders: Tensor,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    mask, blocks = _blocks(borders, window, q)
    return reference.backward(dy, q, k, v, mask, y, lse, scale, blocks)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.scale, borders, ctx.window = inputs
    ctx.save_for_backward(q, k, v, *output, borders)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 6
    *factors, borders = ctx.saved_tensors
    slopes = _sequence_attention_backward(dy, *factors, ctx.scale, borders, ctx.window)
    return *slopes, None, None, None


def _pairs(q: Tensor, borders: Tensor, window: int) -> int:
    """Pairs of a query and a key, over all heads."""
    pairs = 0
    for start, stop in itertools.pairwise(borders.tolist()):
        length = stop - start
        reach = min(window or length, length)
        pairs += reach * (reach + 1) // 2 + (length - reach) * reach
    return int(q.shape[1]) * pairs


def _flops(q: Tensor, k: Tensor, v: Tensor, scale: float, *rest: Any) -> int:
    """Two products of each pair."""
    return 2 * 2 * _pairs(q, *rest) * q.shape[-1]


def _backward_flops(dy: Tensor, q: Tensor, *rest: Any) -> int:
    """Five: the scores once more, and the gradients of scores, q, k and v."""
    return 2 * 5 * _pairs(q, *rest[-2:]) * q.shape[-1]


def _workspace(q: Tensor, k: Tensor, v: Tensor, scale: float, *rest: Any) -> int:
    """The scores of the longest sequence, twice, and its factors, in float32; and a mask."""
    borders, window = rest[0].tolist(), rest[1]
    longest = max(b - a for a, b in itertools.pairwise(borders))
    mask = borders[-1] ** 2 if window else 0
    return int(4 * q.shape[1] * longest * (2 * longest + 4 * q.shape[3]) + mask)


def _backward_workspace(dy: Tensor, *rest: Any) -> int:
    q, k, v, _, _, *others = rest
    return 2 * _workspace(q, k, v, *others)


def _cases() -> list[Case]:
    q, k, v = draw(1, 4, 150, 64), draw(1, 2, 150, 64, seed=1), draw(1, 2, 150, 64, seed=2)
    borders = torch.tensor([0, 1, 70, 150], dtype=torch.int32)
    half, brain = ([t.to(dtype) for t in (q, k, v)] for dtype in (torch.half, torch.bfloat16))
    return [
        Case("", (q, k, v, 0.125, borders, 0), 1e-5),
        Case("a window", (q, k, v, 0.125, borders, 20), 1e-5),
        Case("float16", (*half, 0.125, borders, 0), 2e-3),
        Case("a window, float16", (*half, 0.125, borders, 20), 2e-3),
        Case("bfloat16", (*brain, 0.125, borders, 0), 1e-2),
        Case("a window, bfloat16", (*brain, 0.125, borders, 20), 1e-2),
    ]


def _backward_cases() -> list[Case]:
    made = []
    for case in _cases():
        q, k, v, scale, borders, window = case.arguments
        y, lse = _reference(q, k, v, scale, borders, window)
        dy = draw(*q.shape, seed=3, dtype=q.dtype)
        arguments = (dy, q, k, v, y, lse, scale, borders, window)
        made.append(Case(case.label, arguments, 2 * case.bound))
    return made


_sequence_attention_backward = Operator(
    schema="sequence_attention_backward(Tensor dy, Tensor q, Tensor k, Tensor v, Tensor y, "
    "Tensor lse, float scale, Tensor borders, int window) -> (Tensor dq, Tensor dk, Tensor dv)",
    family="attention",
    check=_check_backward,
    reference=_reference_backward,
    fake=reference.empty_slopes,
    cases=_backward_cases,
    flops=_backward_flops,
    workspace=_backward_workspace,
)
_sequence_attention = Operator(
    schema="sequence_attention(Tensor q, Tensor k, Tensor v, float scale, Tensor borders, "
    "int window) -> (Tensor y, Tensor lse)",
    family="attention",
    check=_check,
    reference=_reference,
    fake=reference.empty_result,
    cases=_cases,
    gradient=_gradient,
    keep=_keep,
    flops=_flops,
    workspace=_workspace,
)
