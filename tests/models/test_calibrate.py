"""Calibration beside the exact model: what is aimed at, and what it is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from graftlm.data.example import Example
from graftlm.frozen.formats import format_named
from graftlm.frozen.weight import WeightSettings
from graftlm.models import calibrate as module
from graftlm.models.calibrate import CalibratedWeights, calibrate
from graftlm.models.named_weights import NamedWeights, named_weights
from graftlm.models.stored_folder import storable_layers
from tests.oracles.model_families import tiny_model


def test_the_aim_is_the_damped_least_squares_solution() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(300, 24), torch.randn(10, 24)
    apart = x + 0.3 * torch.randn(300, 24)
    aim = module._aim(weight, apart.T @ apart, (x - apart).T @ apart)
    damping = module.DAMPING * (apart**2).sum(0).mean()
    pull = damping.sqrt() * torch.eye(24)  # towards the weight
    rows, wanted = torch.cat([apart, pull]), torch.cat([x, pull]) @ weight.T
    solved = torch.linalg.lstsq(rows, wanted).solution.T
    torch.testing.assert_close(aim, solved, rtol=1e-3, atol=1e-4)
    assert float((weight - solved).norm()) > 0.01
    assert torch.equal(module._aim(weight, torch.zeros(24, 24), torch.zeros(24, 24)), weight)


@pytest.mark.parametrize(
    ("shape", "exact"),
    [((6, 5, 8), 3), ((30, 8), 15), ((7, 8), None), ((6, 8), None), ((12, 5, 8), None)],
)
def test_which_inputs_are_of_the_exact_model(shape: tuple[int, ...], exact: int | None) -> None:
    assert module._exact_rows(torch.zeros(shape), torch.zeros(6, 5)) == exact


def logits_of(weights: NamedWeights, made: CalibratedWeights | None, ids: Tensor) -> Tensor:
    def read(name: str) -> Tensor:
        if made is None or name not in made:
            return weights(name)
        dense = made[name].dequantize(torch.float32)
        return dense.T if storable_layers(weights)[name] else dense

    streamed = weights.streamed(read)
    return streamed.logits(streamed.run(ids)[0])


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_layers_make_up_for_the_errors_of_those_before(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model(family).save_pretrained(tmp_path / "base")
    weights = named_weights(tmp_path / "base")
    torch.manual_seed(0)
    ids = torch.randint(3, 60, (48, 32))
    rows = [Example(row.numpy(), [True] * 32) for row in ids]
    lost: dict[str, float] = {}
    dense = logits_of(weights, None, ids)
    for name in ("beside", "alone"):
        if name == "alone":  # no input is told to be of the exact model
            monkeypatch.setattr(module, "_exact_rows", lambda *_: None)
        (tmp_path / name).mkdir()
        format, settings = format_named("nf4"), WeightSettings()
        made = calibrate(
            *(weights, weights, storable_layers(weights), rows, 0, format, settings),
            folder=tmp_path / name,
        )
        lost[name] = float((logits_of(weights, made, ids) - dense).norm())
    assert lost["beside"] < 0.9 * lost["alone"], lost


def test_the_exact_half_is_the_model_itself(tmp_path: Path) -> None:
    """What the first half computes does not depend on what was stored."""
    tiny_model("llama").save_pretrained(tmp_path / "base")
    weights = named_weights(tmp_path / "base")
    ids = torch.arange(3, 35).view(2, 16)
    inputs: dict[str, Tensor] = {}

    def note(name: str, _: Any, x: Tensor) -> None:
        inputs[name] = x.clone()

    weights.streamed(weights).run(ids, before=note)
    grams = module._grams

    def compare(x: Tensor, exact: int | None, mask: Tensor | None) -> Any:
        assert exact == 2
        known = next(iter(waiting.values()))
        del waiting[next(iter(waiting))]
        torch.testing.assert_close(x[:2], known, rtol=1e-4, atol=1e-5)
        return grams(x, exact, mask)

    layers = storable_layers(weights)
    waiting = {name: x for name, x in inputs.items() if f"{name}.weight" in layers}
    rows = [Example(row.numpy(), [True] * 16) for row in ids]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_grams", compare)
        format, settings = format_named("nf4"), WeightSettings()
        calibrate(weights, weights, layers, rows, 0, format, settings, tmp_path)
    assert not waiting
