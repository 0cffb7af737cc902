"""Error feedback: smaller output errors than plain rounding, in the plain stored form."""

from __future__ import annotations

import pytest
import torch

from graftlm.errors import ModelError
from graftlm.frozen.nf4.error_feedback import feedback, search
from graftlm.frozen.nf4.frozen_nf4 import FrozenNF4
from graftlm.frozen.weight import WeightSettings
from graftlm.kernels.nf4 import dequantize, quantize


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
    from graftlm.kernels.nf4.codebook import nf4_levels

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


def test_a_small_update_survives_on_the_scales_of_its_base() -> None:
    torch.manual_seed(0)
    X, base = inputs(400, 128), quantize(torch.randn(96, 128) * 0.05)
    W = dequantize(base, torch.float32)
    update = 0.03 * (torch.randn(96, 4) @ torch.randn(4, 128)) * 0.05
    plain = quantize(W + update)
    assert float((dequantize(plain, torch.float32) - W).norm()) < 0.6 * float(update.norm())
    kept = feedback(W + update, X.T @ X, 64, True, torch.float32, base)
    assert torch.equal(kept.absmax, base.absmax)
    target = X @ (W + update).T
    lost = (X @ dequantize(kept, torch.float32).T - target).norm() / (X @ update.T).norm()
    assert float(lost) < 0.3
    same = feedback(W, X.T @ X, 64, True, torch.float32, base)
    assert torch.equal(same.codes, base.codes)


def test_the_format_offers_it() -> None:
    W, X = torch.randn(64, 64), inputs(100, 64)
    stored = FrozenNF4.quantize_for(W, WeightSettings(), X.T @ X, torch.bfloat16)
    assert stored.dtype == torch.bfloat16
    assert stored.settings() == {"block_size": 64, "double_quant": True}
