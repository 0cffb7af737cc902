"""Stages of a sweep that train: ten steps, resumed, recomputed, saved and planned."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import graftlm
from benchmarks.sweep_model import RANK, DifferentError, OneModel, close
from graftlm.adapters.adapted import lora_modules
from graftlm.config import LoRAConfig, ModelConfig, RunConfig, TrainConfig
from graftlm.extend import Hook
from graftlm.planning.plan import make_plan
from graftlm.planning.source import source_of
from graftlm.planning.trace import BatchShape, trace_step
from graftlm.training.next_token import NextToken
from graftlm.training.step import train_step

__all__ = ["stage_checkpointing", "stage_plan", "stage_qlora", "stage_save", "stage_train"]

STEPS = 10
PLANNED = 0.15
"""Largest relative error of a predicted peak."""
SHAPE = BatchShape(2, 64)


class StoppedError(Exception):
    """Ends a run between two steps, as a crash would."""


class StopBefore(Hook):
    """Raises before the step with this number, from 0."""

    def __init__(self, step: int) -> None:
        self.step = step

    def step_begins(self, active: Any) -> None:
        if active.state.step == self.step:
            raise StoppedError


def trained(
    one: OneModel,
    name: str,
    *,
    quantize: str | None = None,
    stop: int | None = None,
    resume: bool = False,
    **train: Any,
) -> Any:
    """The model after its run in the folder ``name``; with ``stop`` the run ends by an error."""
    model = one.load(quantize)
    torch.manual_seed(0)
    graftlm.add_lora(model, LoRAConfig(rank=RANK))
    settings = {"steps": STEPS, "batch_size": 4, "learning_rate": 1e-2} | train
    with contextlib.suppress(StoppedError):
        graftlm.train(
            model,
            one.tokenizer,
            one.rows(),
            TrainConfig(**settings),
            out=one.work / name,
            progress=False,
            resume=resume,
            hooks=() if stop is None else (StopBefore(stop),),
        )
    return model.eval()


def losses(folder: Path) -> torch.Tensor:
    """The loss of each step of a run."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return torch.tensor([json.loads(line)["loss"] for line in lines])


def falling(folder: Path) -> str:
    """The losses of the first and the last step, which must be lower."""
    every = losses(folder)
    if len(every) != STEPS or not every[-1] < every[0]:
        raise DifferentError(
            f"the loss went from {every[0]:.3f} to {every[-1]:.3f} in {len(every)} steps"
        )
    return f"loss {every[0]:.2f} to {every[-1]:.2f}"


def resumed(one: OneModel, name: str, quantize: str | None) -> str:
    """Ten steps, and ten steps interrupted after five: the same adapter, bit by bit."""
    whole, again = one.work / name, one.work / f"{name}-resumed"
    model = trained(one, name, quantize=quantize, save_steps=STEPS // 2)
    one.kept[name] = model
    said = falling(whole)
    common = {"quantize": quantize, "save_steps": STEPS // 2}
    trained(one, again.name, stop=STEPS // 2 + 1, **common)
    second = trained(one, again.name, resume=True, **common)
    for (place, mine), (_, other) in zip(
        lora_modules(model).items(), lora_modules(second).items(), strict=True
    ):
        for key, tensor in mine.peft_state().items():
            if not torch.equal(tensor, other.peft_state()[key]):
                raise DifferentError(f"resumed, {place}.{key} ends elsewhere")
    return said


def stage_train(one: OneModel) -> str:
    """LoRA trains with a falling loss, and a run that was cut ends the same."""
    return resumed(one, "run", None)


def stage_qlora(one: OneModel) -> str:
    """The same on NF4."""
    return resumed(one, "run-nf4", "nf4")


def stage_checkpointing(one: OneModel) -> str:
    """Training that recomputes activations goes as training that keeps them."""
    if not (one.work / "run" / "metrics.jsonl").exists():
        trained(one, "run")
    trained(one, "run-recomputed", gradient_checkpointing=True)
    kept = losses(one.work / "run")
    return close(losses(one.work / "run-recomputed"), kept, spread=float(kept[0]), rounding=1e-2)


def stage_save(one: OneModel) -> str:
    """The adapter of a run, loaded into a fresh model: by graftlm and by PEFT."""
    import peft

    model = one.kept.get("run") or trained(one, "run")
    folder, expected = one.work / "run" / "adapter", one.logits(model)
    fresh = one.load()
    graftlm.load_adapter(fresh, folder)
    said = close(one.logits(fresh), expected)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(one.oracle), folder)
    return f"{said}, in PEFT {close(one.logits(theirs), expected)}"


def stage_plan(one: OneModel) -> str:
    """A command's plan exists, and a step's predicted peak is what torch's allocator reports.

    The process itself takes far more than a tiny model, so only tensors are compared.
    """
    config = planned_config(one)
    made = make_plan(config, memory="8GB", methods=("qlora",), only_recommended=True)
    option = made.recommendation.option
    said = planned_tensors(one, config)
    return f"{said}; with the process {option.predicted_peak_bytes / 1e6:.0f} MB"


def planned_config(one: OneModel) -> RunConfig:
    """The settings that are planned."""
    config = RunConfig(
        method="qlora",
        model=ModelConfig(name=str(one.folder)),
        lora=LoRAConfig(rank=RANK),
        train=TrainConfig(batch_size=SHAPE.rows),
    )
    return config.model_copy(
        update={"data": config.data.model_copy(update={"max_length": SHAPE.length})}
    )


def planned_tensors(one: OneModel, config: RunConfig) -> str:
    """The largest error of a predicted peak of LoRA and QLoRA."""
    source, worst = source_of(config), 0.0
    for method in ("lora", "qlora"):
        asked = config.model_copy(update={"method": method})
        trace = trace_step(source.architecture, asked, SHAPE, torch.float32)
        measured = measured_peak(one, "nf4" if method == "qlora" else None)
        error = trace.peak.nbytes / measured - 1
        if abs(error) > PLANNED:
            raise DifferentError(
                f"{method}: {trace.peak.nbytes / 1e6:.2f} MB planned, {measured / 1e6:.2f} measured"
            )
        worst = max(worst, error, key=abs)
    return f"{worst:+.0%} at most"


def measured_peak(one: OneModel, quantize: str | None) -> int:
    """Bytes of the model's tensors and the peak of a step, as the allocator reports them."""
    model = one.load(quantize)
    torch.manual_seed(0)
    graftlm.add_lora(model, LoRAConfig(rank=RANK))
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)
    batch = SHAPE.batch()
    batch.input_ids.random_(1, 250, generator=torch.Generator().manual_seed(0))
    step = functools.partial(
        train_step, model, [batch], optimizer, parameters, 1.0, NextToken(TrainConfig())
    )
    step()
    optimizer.zero_grad(set_to_none=True)
    state = (value for values in optimizer.state.values() for value in values.values())
    every = [*model.parameters(), *model.buffers(), *state]
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in every}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    now = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return sum(held.values()) + 2 * batch.input_ids.nbytes + peak
