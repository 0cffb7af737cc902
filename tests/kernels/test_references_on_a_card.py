"""The references on an accelerator without kernels: they never wait for it, and start few tiles."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from graftlm.kernels import nf4
from graftlm.kernels.nf4.weight import NF4Weight
from graftlm.kernels.reference import cross_entropy, nf4_linear
from tests.oracles.second_device import CARD, CPU, second_device


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_asks_the_device_for_no_number(smoothing: float) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(9, 16), torch.randn(700, 16)
    targets = torch.tensor([0, 255, 256, 257, 511, 512, 600, 699, 3])  # at the borders of tiles
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy, "TILE_ELEMENTS", 1)
        wanted = cross_entropy.forward(
            hidden.double(), cross_entropy.Head(weight.double()), targets, smoothing, True
        )
        with second_device() as device:
            there = [t.to(CARD) for t in (hidden, weight, targets)]
            head = cross_entropy.Head(there[1])
            device.waits.clear()
            found = cross_entropy.forward(there[0], head, there[2], smoothing, True)
            slopes = cross_entropy.backward(
                there[0], head, there[2], found.lse, smoothing, (True, True, False)
            )
            assert not device.waits
            loss, grad = found.loss.cpu(), found.grad_hidden.cpu()  # type: ignore[union-attr]
            again = slopes.hidden.cpu()  # type: ignore[union-attr]
    leaf = hidden.double().requires_grad_()
    truth = torch.nn.functional.cross_entropy(
        leaf @ weight.double().T, targets, reduction="none", label_smoothing=smoothing
    )
    (slope,) = torch.autograd.grad(truth.sum(), leaf)
    torch.testing.assert_close(wanted.loss, truth.detach())
    torch.testing.assert_close(loss.double(), truth.detach(), rtol=1e-5, atol=1e-5)
    for ours in (grad, again):
        torch.testing.assert_close(ours.double(), slope, rtol=1e-4, atol=1e-5)


def test_a_matrix_is_one_tile_there_and_many_on_the_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nf4_linear, "TILE_ELEMENTS", 2048)
    here = nf4.quantize(torch.randn(64, 128))
    dense = nf4.dequantize(here, torch.float32)
    assert len(list(nf4_linear.row_tiles(here, torch.float32))) == 4
    with second_device():
        parts = {f.name: getattr(here, f.name) for f in dataclasses.fields(here)}
        moved = {n: t.to(CARD) if isinstance(t, torch.Tensor) else t for n, t in parts.items()}
        tiles = list(nf4_linear.row_tiles(NF4Weight(**moved), torch.float32))
        assert [(start, stop) for start, stop, _ in tiles] == [(0, 64)]
        assert torch.equal(tiles[0][2].cpu(), dense)
    # One for each matrix of an 8B model; the memory for a larger one is bounded.
    assert nf4_linear.tile_elements(CARD) >= 14336 * 4096 > nf4_linear.tile_elements(CPU)
