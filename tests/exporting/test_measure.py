"""The measures of a merge against the formulas over whole logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from graftlm.adapters import add_lora, lora_parameters
from graftlm.adapters.peft_format import load_adapter, save_adapter
from graftlm.config import LoRAConfig
from graftlm.data.example import Example
from graftlm.errors import DataError
from graftlm.exporting import measure
from graftlm.exporting.measure import Comparison, compare_passes, kept_share, pass_over
from graftlm.models import load_model
from graftlm.models.named_weights import named_weights
from graftlm.models.streamed import StreamedModel


def rows(count: int, supervised: bool = True) -> list[Example]:
    torch.manual_seed(0)
    lengths = [5 + 3 * index for index in range(count)]
    return [
        Example(torch.randint(260, (n,)).tolist(), [False] * 2 + [supervised] * (n - 2))
        for n in lengths
    ]


def test_measures_equal_the_formulas_over_whole_logits(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graftlm.models.streamed.VOCABULARY_ROWS", 50)
    monkeypatch.setattr(measure, "VOCABULARY_ROWS", 50)
    monkeypatch.setattr(measure, "LOGITS_BYTES", 4 * 50 * 16)
    weights = named_weights(tiny_llama)

    def changed(name: str) -> torch.Tensor:
        weight = weights(name)
        torch.manual_seed(len(name))
        return weight + 0.05 * torch.randn_like(weight)

    examples = rows(6)
    live = pass_over(weights.streamed(), examples, 0)
    other = pass_over(weights.streamed(changed), examples, 0)
    found = compare_passes(live, other)
    p, q = (one.model.logits(one.hidden).double().log_softmax(-1) for one in (live, other))
    assert len(live.targets) == sum(len(row) - 2 for row in examples)
    assert found.loss == pytest.approx(float(F.nll_loss(q, live.targets)), rel=1e-6)
    assert found.kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)
    assert found.agreement == float((p.argmax(-1) == q.argmax(-1)).double().mean())
    assert all(error > 1e-3 for error in found.layers.values())
    same = compare_passes(live, live)
    assert (same.agreement, max(same.layers.values())) == (1.0, 0.0)
    assert same.kl < 1e-6


def test_an_adapted_output_layer_is_compared_in_parts_too(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graftlm.models.streamed.VOCABULARY_ROWS", 50)
    model, _ = load_model(tiny_llama, quantize=None)
    add_lora(model, LoRAConfig(rank=2, targets=("lm_head",)))
    with torch.no_grad():
        for _, parameter in lora_parameters(model):
            parameter.normal_(std=0.2)
    save_adapter(model, tmp_path, base_name=str(tiny_llama))
    weights = named_weights(tiny_llama)
    adapted = weights.streamed()
    load_adapter(adapted.model, tmp_path)
    live = pass_over(adapted, rows(3), 0)
    base = pass_over(weights.streamed(), rows(3), 0)
    found = compare_passes(live, base)
    p, q = (one.model.logits(one.hidden).double().log_softmax(-1) for one in (live, base))
    assert found.loss == pytest.approx(float(F.nll_loss(q, live.targets)), rel=1e-6)
    assert found.kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)
    assert found.kl > 1e-3


def test_kept_is_from_the_loss_where_the_tune_improves_it() -> None:
    base, live = Comparison(3.0, 0.8, 0.5, {}), Comparison(2.0, 0.0, 1.0, {})
    assert kept_share(base, live, Comparison(2.25, 0.1, 0.9, {})) == (0.75, "loss")
    worse = Comparison(3.2, 0.0, 1.0, {})
    kept, how = kept_share(base, worse, Comparison(3.1, 0.2, 0.9, {}))
    assert (kept, how) == (pytest.approx(0.75), "distributions")


def test_rows_without_a_supervised_token_are_refused(tiny_llama: Path) -> None:
    model: StreamedModel = named_weights(tiny_llama).streamed()
    with pytest.raises(DataError, match="supervised"):
        pass_over(model, rows(2, supervised=False), 0)
