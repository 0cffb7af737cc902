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
@given(
    st.integers(0, 2**31),
    st.lists(st.integers(32, 90), min_size=2, max_size=6),
    st.integers(0, 3),
    st.booleans(),
)
def test_nothing_that_a_mask_lets_through_is_left_out(
    seed: int, lengths: list[int], extra: int, empty: bool
) -> None:
    """Blocks that see forward too, rows that see nothing, and a few entries between blocks."""
    random = torch.Generator().manual_seed(seed)
    sequence = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    length = len(sequence)
    same = sequence[:, None] == sequence
    mask = same & (torch.rand(2, 3, length, length, generator=random) < 0.3)
    if empty:
        mask[:, :, torch.randint(length, (5,), generator=random)] = False
    for _ in range(extra):
        b, h, i, j = (int(torch.randint(n, (1,), generator=random)) for n in mask.shape)
        mask[b, h, i, j] = True
    found = blocks(mask)
    assert not hidden(mask, found).any()
    assert extra or len(found) >= len(lengths)  # empty rows may be cut off besides


def test_a_mask_that_was_changed_is_read_again() -> None:
    mask = causal([40, 40])
    assert len(blocks(mask)) == 2
    mask[..., 79, 0] = True
    assert len(blocks(mask)) == 1
    with torch.inference_mode():
        assert len(blocks(causal([40, 40]))) == 2
