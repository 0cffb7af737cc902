"""Error feedback: smaller output errors than plain rounding, in the plain stored form."""

from __future__ import annotations

import pytest
import torch

from graftlm.errors import ModelError
from graftlm.frozen.nf4.error_feedback import feedback, search
from graftlm.frozen.nf4.frozen_nf4 import FrozenNF4
from graftlm.frozen.nf4.refine import refine
from graftlm.frozen.weight import WeightSettings
from graftlm.kernels.nf4 import dequantize, quantize
from graftlm.kernels.nf4.codebook import nf4_levels
from graftlm.kernels.nf4.quantize import unpack


def inputs(rows: int, features: int) -> torch.Tensor:
    """Correlated inputs with a few large features, as in language models."""
    torch.manual_seed(1)
    mixed = torch.randn(rows, 24) @ torch.randn(24, features) + 0.3 * torch.randn(rows, features)
    mixed[:, ::17] *= 6
    return mixed


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize(
    ("out", "features", "block"), [(96, 128, 64), (70, 100, 64), (64, 192, 32)]
)
def test_output_error_is_far_below_that_of_plain_rounding(
    out: int, features: int, block: int, double_quant: bool
) -> None:
    torch.manual_seed(0)
    W, X = torch.randn(out, features) * 0.05, inputs(400, features)
    stored = feedback(W, X.T @ X, block, double_quant, torch.float32)
    plain = quantize(W, block, double_quant)
    assert stored.nbytes == plain.nbytes
    assert (stored.shape, stored.double_quantized) == (plain.shape, plain.double_quantized)
    target = X @ W.T
    errors = [
        float((X @ dequantize(one, torch.float32).T - target).norm()) for one in (stored, plain)
    ]
    assert errors[0] < 0.5 * errors[1], errors


def test_with_uncorrelated_inputs_it_is_rounding_to_the_nearest_level_of_its_scales() -> None:
    torch.manual_seed(0)
    W = torch.randn(64, 128) * 0.05
    stored = feedback(W, torch.eye(128), 64, False, torch.float32)
    levels = nf4_levels()
    scaled = W.view(-1, 64) / stored.absmax[:, None]
    nearest = (scaled[..., None] - levels).abs().argmin(-1)
    packed = nearest.view(-1)
    codes = torch.stack([stored.codes >> 4, stored.codes & 15], dim=1).view(-1)
    assert torch.equal(codes.long(), packed)


def test_the_scales_are_never_worse_than_the_maxima() -> None:
    torch.manual_seed(0)
    W, importance = torch.randn(32, 128), torch.rand(128) + 0.1
    scales = search(W, importance, 64)
    peak = W.view(-1, 64).abs().amax(1)
    assert bool((scales <= peak).all())
    assert bool((scales < peak).any())


def test_a_layer_without_inputs_is_still_stored() -> None:
    W = torch.randn(64, 64)
    stored = feedback(W, torch.zeros(64, 64), 64, True, torch.bfloat16)
    assert stored.dtype == torch.bfloat16
    assert float((dequantize(stored, torch.float32) - W).norm() / W.norm()) < 0.2


def test_zero_rows_stay_zero_and_nan_is_refused() -> None:
    W, X = torch.randn(64, 64), inputs(100, 64)
    W[3] = 0
    stored = feedback(W, X.T @ X, 64, False, torch.float32)
    assert not dequantize(stored, torch.float32)[3].any()
    W[5, 5] = float("nan")
    with pytest.raises(ModelError, match="NaN"):
        feedback(W, X.T @ X, 64, True, torch.float32)


def test_refining_from_the_rounded_original_keeps_a_small_update_with_less_noise() -> None:
    torch.manual_seed(0)
    original, X = torch.randn(96, 128) * 0.05, inputs(400, 128)
    base = dequantize(quantize(original), torch.float32)
    update = 0.03 * (torch.randn(96, 4) @ torch.randn(4, 128)) * 0.05
    start = quantize(original + update)
    fitted = feedback(base + update, X.T @ X, 64, True, torch.float32, start)
    assert torch.equal(fitted.absmax, start.absmax)
    target = X @ (base + update).T
    lost = [
        float((X @ dequantize(one, torch.float32).T - target).norm() / (X @ update.T).norm())
        for one in (fitted, start, quantize(base + update))
    ]
    assert lost[0] < 0.5 * min(lost[1:]), lost


def test_refining_never_raises_the_error_and_leaves_what_fits() -> None:
    torch.manual_seed(0)
    W, X = torch.randn(40, 192) * 0.05, inputs(300, 192)
    H = X.T @ X + torch.eye(192)
    stored = quantize(W, 64, False)
    scales = stored.absmax.repeat_interleave(64).view(W.shape)
    codes = unpack(stored.codes, W.shape)
    errors = []
    for sweeps in (0, 1, 2, 4):
        found = refine(codes, scales, W, H, sweeps)
        residual = nf4_levels()[found.int()] * scales - W
        errors.append(float(((residual @ H) * residual).sum()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * errors[0]
    assert torch.equal(refine(codes, scales, dequantize(stored, torch.float32), H, 3), codes)


def test_the_format_offers_it() -> None:
    W, X = torch.randn(64, 64), inputs(100, 64)
    stored = FrozenNF4.quantize_for(W, WeightSettings(), X.T @ X, torch.bfloat16)
    assert stored.dtype == torch.bfloat16
    assert stored.settings() == {"block_size": 64, "double_quant": True}
