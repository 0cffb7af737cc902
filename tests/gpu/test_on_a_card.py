"""What only a GPU can show: the kernels' results on it, and whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from graftlm import kernels
from graftlm.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from graftlm.data import Example, collate
from graftlm.errors import TrainingError
from graftlm.extend import Hook
from graftlm.kernels import nf4, operators
from graftlm.kernels.nf4_convert import dequantize, quantize
from graftlm.models import generate_text, load_model, load_weights
from graftlm.models.capabilities import capabilities
from graftlm.planning import run_trial
from graftlm.system.placement import Placement
from graftlm.training import run
from graftlm.training.batching import micro_batches
from graftlm.training.next_token import next_token_loss

CPU_ONLY = {"attention", "attention_backward", "few_rows_linear", "mean_row"}
"""Operators that PyTorch computes on a card."""


FLASH = {"sequence_attention", "sequence_attention_backward"}
"""Operators that need flash attention."""


def has_flash_attention(card: str) -> bool:
    known = torch.device(card).type == "cuda" and torch.version.hip is None
    return known and torch.cuda.get_device_capability(card) >= (8, 0)


def test_every_kernel_has_the_results_of_its_reference(card: str) -> None:
    rows = [row for row in kernels.selfcheck(card) if row["device"] == card]
    assert [row for row in rows if row["result"] != "ok"] == []
    missing = CPU_ONLY if has_flash_attention(card) else CPU_ONLY | FLASH
    assert {row["operator"] for row in rows} >= operators().keys() - missing
    for row in rows:
        assert row["runs"] == ("PyTorch" if row["operator"] in FLASH else "triton"), row


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(33, 71), (1, 1), (1024, 4096)])
def test_bits_in_four_bits_are_those_of_the_cpu(
    shape: tuple[int, int], dtype: torch.dtype, card: str
) -> None:
    w = torch.randn(shape).to(dtype)
    here, there = nf4.quantize(w, double_quant=False), quantize(w.to(card), double_quant=False)
    assert torch.equal(there.codes.cpu(), here.codes)
    assert torch.equal(there.absmax.cpu(), here.absmax)
    assert torch.equal(dequantize(there, dtype).cpu(), nf4.dequantize(here, dtype))


def request(model: Path, rows: Path, out: Path, device: str, **settings: Any) -> RunConfig:
    train = {"steps": 10, "batch_size": 3, "learning_rate": 1e-2, "schedule": "constant"}
    return RunConfig(
        method=settings.pop("method", "qlora"),
        device=device,
        out=str(out),
        model=ModelConfig(name=str(model)),
        data=DataConfig(train=str(rows)),
        train=TrainConfig(**{**train, **settings}),
    )


@pytest.mark.parametrize("method", ["qlora", "lora", "full"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_run_there_learns_what_a_run_here_learns(
    method: str, checkpointing: bool, tiny_llama: Path, rows_file: Path, tmp_path: Path, card: str
) -> None:
    losses = [
        run(
            request(
                tiny_llama,
                rows_file,
                tmp_path / device,
                device,
                method=method,
                gradient_checkpointing=checkpointing,
            ),
            progress=False,
        ).train_loss
        for device in ("cpu", card)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


class PauseAfterTwo(Hook):
    def step_ends(self, active: Any) -> None:
        if active.state.step == 2:
            active.pause()


def test_a_resumed_run_is_the_same_to_the_last_bit(
    tiny_llama: Path, rows_file: Path, tmp_path: Path, card: str
) -> None:
    whole = run(request(tiny_llama, rows_file, tmp_path / "a", card, steps=4), progress=False)
    asked = request(tiny_llama, rows_file, tmp_path / "b", card, steps=4)
    run(asked, progress=False, hooks=[PauseAfterTwo()])
    parts = run(asked, resume=True, progress=False)
    first, second = (
        load_file(Path(one.adapter or "") / "adapter_model.safetensors") for one in (whole, parts)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


ROWS = [Example([5 + i % 50 for i in range(n)], [True] * n) for n in (20, 45, 9, 64)]


def test_a_batch_without_padding_has_the_loss_and_gradients_of_a_padded_one(
    tiny_llama: Path, card: str
) -> None:
    if not has_flash_attention(card):
        pytest.skip("this card has no flash attention, so its batches are padded")
    found = []
    for packed in (True, False):
        model = load_weights(tiny_llama, quantize=None, dtype="bfloat16", device=card)
        assert capabilities(model).attends_between_borders
        pad = [collate(ROWS, None).to(card)]
        (batch,) = micro_batches(model, ROWS) if packed else pad
        assert (batch.borders is not None) is packed
        loss, _ = next_token_loss(model.requires_grad_(True), batch)
        loss.backward()
        gradient = torch.cat([p.grad.flatten().float() for p in model.parameters()])
        found.append((float(loss.detach()), gradient))
    (loss, gradient), (wanted, exact) = found
    assert loss == pytest.approx(wanted, rel=1e-2)
    assert (gradient - exact).norm() <= 5e-2 * exact.norm()


def test_compiled_layers_learn_the_same(
    tiny_llama: Path, rows_file: Path, tmp_path: Path, card: str
) -> None:
    losses = [
        run(
            request(tiny_llama, rows_file, tmp_path / str(it), card, steps=3, compile=it),
            progress=False,
        ).train_loss
        for it in (False, True)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


def test_weights_live_on_the_card_and_answers_come_from_it(tiny_llama: Path, card: str) -> None:
    model, tokenizer = load_model(tiny_llama, device=card)
    assert {str(t.device) for t in (*model.parameters(), *model.buffers())} == {card}
    assert generate_text(model, tokenizer, [[1, 2, 3], [4]], max_new_tokens=8)
    assert Placement.on(card).memory_now() > 0


class Hog(Hook):
    def step_begins(self, active: Any) -> None:
        self.kept = torch.empty(1 << 50, dtype=torch.uint8, device=active.run.placement.device)


def test_memory_that_runs_out_is_answered_with_what_needs_less(
    tiny_llama: Path, rows_file: Path, tmp_path: Path, card: str
) -> None:
    with pytest.raises(TrainingError, match=r"ran out.*micro_batch_tokens"):
        run(request(tiny_llama, rows_file, tmp_path, card), progress=False, hooks=[Hog()])


def test_a_trial_run_measures_the_card(tiny_llama: Path, card: str) -> None:
    config = RunConfig(model=ModelConfig(name=str(tiny_llama)), device=card)
    measured = run_trial(config, 64)
    assert 0 < measured.loading_peak_bytes <= measured.peak_bytes < 1 << 30
