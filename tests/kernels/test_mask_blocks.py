"""The blocks of a mask hold all that it lets through, and are as small as they may be."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from graftlm.kernels.mask_blocks import LEAST, Block, blocks


def causal(lengths: list[int], window: int | None = None) -> Tensor:
    """The mask of sequences laid end to end."""
    sequence = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    place = torch.arange(len(sequence))
    mask = (sequence[:, None] == sequence) & (place <= place[:, None])
    if window is not None:
        mask &= place > place[:, None] - window
    return mask[None, None]


def hidden(mask: Tensor, found: tuple[Block, ...]) -> Tensor:
    """The mask without what lies in the blocks."""
    rest = mask.clone()
    for block in found:
        rest[..., block.start : block.stop, block.start : block.stop] = False
    return rest


@settings(derandomize=True, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=9), st.none() | st.integers(1, 50))
def test_sequences_end_to_end(lengths: list[int], window: int | None) -> None:
    mask = causal(lengths, window)
    found = blocks(mask)
    assert [block.start for block in found] == [0, *(block.stop for block in found[:-1])]
    assert found[-1].stop == sum(lengths)
    assert not hidden(mask, found).any()
    assert len(found) == 1 or min(block.stop - block.start for block in found) >= LEAST
    for block in found:
        part = mask[..., block.start : block.stop, block.start : block.stop]
        assert block.causal == bool((part == torch.ones_like(part).tril()).all())


def test_long_sequences_are_a_block_each() -> None:
    assert blocks(causal([40, 50, 32])) == (
        Block(0, 40, True),
        Block(40, 90, True),
        Block(90, 122, True),
    )


def test_short_neighbours_share_a_block() -> None:
    assert blocks(causal([40, 10, 50, 9])) == (Block(0, 40, True), Block(40, 109, False))


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 100), st.floats(0, 0.05))
def test_nothing_that_a_mask_lets_through_is_left_out(seed: int, length: int, share: float) -> None:
    random = torch.Generator().manual_seed(seed)
    mask = torch.rand(2, 3, length, length, generator=random) < share
    assert not hidden(mask, blocks(mask)).any()
