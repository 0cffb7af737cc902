"""The levels: derived here, and the same as everybody's."""

from __future__ import annotations

import statistics

import bitsandbytes.functional as bnb
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from graftlm.kernels.nf4 import codebook

PUBLISHED = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
]


def test_levels_equal_the_published_table_to_the_bit() -> None:
    assert codebook.nf4_levels().tolist() == PUBLISHED
    assert torch.equal(codebook.nf4_levels(), bnb.get_4bit_type("nf4", device="cpu"))


def test_levels_are_normal_quantiles_at_even_probabilities() -> None:
    levels = codebook.nf4_levels().double()
    largest = statistics.NormalDist().inv_cdf(codebook.DELTA)
    probabilities = torch.special.ndtr(levels * largest)
    for side, steps in ((probabilities[:8], 7), (probabilities[7:], 8)):
        expected = (codebook.DELTA - 0.5) / steps
        torch.testing.assert_close(
            side.diff(), torch.full((steps,), expected, dtype=torch.float64), atol=1e-7, rtol=0
        )


def test_dynamic_map_equals_that_of_bitsandbytes_to_the_bit() -> None:
    levels = codebook.dynamic_levels()
    assert torch.equal(levels, bnb.create_dynamic_map())
    assert bool((levels.diff() > 0).all())


def test_pairs_spell_out_both_nibbles_of_every_byte() -> None:
    levels, pairs = codebook.nf4_levels(), codebook.nf4_pairs()
    byte = torch.arange(256)
    assert torch.equal(pairs[:, 0], levels[byte >> 4])
    assert torch.equal(pairs[:, 1], levels[byte & 15])


def test_grid_codes_are_the_nearest_levels_of_an_even_grid() -> None:
    levels, codes = codebook.dynamic_levels().double(), codebook.grid_codes().long()
    points = torch.linspace(-1, 1, codebook.GRID, dtype=torch.float64)
    distances = [(levels - part.view(-1, 1)).abs().amin(dim=1) for part in points.split(4096)]
    chosen = (levels[codes] - points).abs()
    torch.testing.assert_close(chosen, torch.cat(distances), atol=2e-7, rtol=0)


def test_levels_first_asked_for_under_fake_tensors_are_real_afterwards() -> None:
    codebook._nf4.cache_clear()
    with FakeTensorMode():
        codebook.nf4_levels()
    assert codebook.nf4_levels().tolist() == PUBLISHED
