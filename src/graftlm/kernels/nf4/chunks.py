"""Cuts a flattened weight into parts: a bounded number of whole blocks at a time."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["BLOCK_SIZES", "spans"]

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Block sizes bitsandbytes reads. All are even, so no byte of codes is shared by two blocks."""

SPAN = 1 << 20
"""Elements at a time, a multiple of every block size: temporaries stay near 16 MB."""


def spans(numel: int, block_size: int) -> Iterator[tuple[slice, slice, slice, int]]:
    """Cut ``numel`` elements into runs of whole blocks; a short last block is a run of its own.

    Yields:
        ``(elements, bytes, blocks, width)``: the range of the run in the weight, in the codes and
        in the block maxima, and the length of its blocks (the last may be shorter).
    """
    whole = numel - numel % block_size
    for start in range(0, whole, SPAN):
        yield _span(start, min(start + SPAN, whole), block_size, block_size)
    if whole < numel:
        yield _span(whole, numel, block_size, numel - whole)


def _span(start: int, stop: int, block_size: int, width: int) -> tuple[slice, slice, slice, int]:
    return (
        slice(start, stop),
        slice(start // 2, (stop + 1) // 2),
        slice(start // block_size, -(-stop // block_size)),
        width,
    )
