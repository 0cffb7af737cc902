"""The trace against a real step: PyTorch's own allocator, through the profiler, is the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, LlamaConfig

from graftlm.adapters import add_lora
from graftlm.config import LoRAConfig, ModelConfig, RunConfig, TrainConfig
from graftlm.data.batch import IGNORED, Batch
from graftlm.frozen.linear import FrozenLinear
from graftlm.frozen.nf4.frozen_nf4 import FrozenNF4
from graftlm.models.assemble import assemble
from graftlm.models.streaming import linear_layers, unquantized_names
from graftlm.planning.cost import BYTES, CALLS, Cost
from graftlm.planning.trace import BatchShape, Trace, trace_step
from graftlm.training.next_token import NextToken
from graftlm.training.recompute import recompute_activations
from graftlm.training.resolve import embeddings_of
from graftlm.training.step import train_step
from tests.oracles.model_families import FAMILIES, tiny_config

SMALL = LlamaConfig(
    vocab_size=1000,
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
)


class Partly(BatchShape):
    """Of each row the first 39 predicted tokens are supervised."""

    def batch(self) -> Batch:
        batch = super().batch()
        batch.labels[:, 40:] = IGNORED
        return batch


def settings(method: str = "lora", **train: Any) -> RunConfig:
    return RunConfig(method=method, lora=LoRAConfig(rank=4), train=TrainConfig(**train))


def traced(config: RunConfig, shape: BatchShape | None = None, device: str = "cpu") -> Trace:
    return trace_step(SMALL, config, shape or BatchShape(2, 96), torch.float32, device)


def random_weights(config: RunConfig) -> Any:
    model = AutoModelForCausalLM.from_config(SMALL)
    with torch.no_grad():
        model.model.norm.weight.mul_(20)  # confident, as a trained model: no exact fallback
    if config.method == "qlora":
        for name, layer in linear_layers(model).items():
            if name not in unquantized_names(model):
                model.set_submodule(name, FrozenLinear.of(layer, FrozenNF4))
    return model


def allocated_by_a_real_step(config: RunConfig, shape: BatchShape) -> tuple[int, int]:
    """Bytes held between steps, and the peak a step adds to them, as the allocator reports."""
    torch.manual_seed(0)
    model = assemble(SMALL, lambda _: random_weights(config), embeddings=embeddings_of(config))
    if config.method != "full":
        add_lora(model, config.lora)
    if config.train.gradient_checkpointing:
        recompute_activations(model)
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)
    batches = [shape.batch() for _ in range(int(shape.passes))]
    for batch in batches:
        batch.input_ids.random_(0, 1000)

    def step() -> None:
        train_step(model, batches, optimizer, parameters, 1.0, NextToken(config.train))

    step()
    optimizer.zero_grad(set_to_none=True)
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors(model)}
    held |= {t.data_ptr(): t.nbytes for s in optimizer.state.values() for t in s.values()}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    now = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return sum(held.values()), peak


def flops(cost: Cost) -> int:
    return sum(work for kind, work in cost.items() if kind not in (BYTES, CALLS))


def tensors(model: torch.nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", ["full", "lora", "qlora", "qlora with int8"])
def test_the_trace_predicts_what_the_allocator_gives_out(method: str, checkpointing: bool) -> None:
    method, _, int8 = method.partition(" with ")
    config = settings(method, gradient_checkpointing=checkpointing)
    if int8:
        config = config.model_copy(update={"model": ModelConfig(embeddings="int8")})
    shape = Partly(2, 160, passes=2)
    held, peak = allocated_by_a_real_step(config, shape)
    trace = traced(config, shape)
    batch_bytes = 2 * 8 * shape.rows * shape.length
    assert trace.resident == pytest.approx(held + batch_bytes, abs=1024)
    assert trace.peak.nbytes - trace.resident == pytest.approx(peak, rel=0.03)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_is_traced(family: str) -> None:
    for method in ("full", "lora", "qlora"):
        trace = trace_step(
            tiny_config(family), settings(method), BatchShape(2, 24, padded=True), torch.bfloat16
        )
        assert trace.peak.nbytes > trace.resident >= trace.weight_bytes > 0
        assert flops(trace.cost) > 0


def test_more_of_anything_takes_more() -> None:
    base = traced(settings()).peak.nbytes
    assert traced(settings(), BatchShape(4, 96)).peak.nbytes > base
    assert traced(settings(), BatchShape(2, 192)).peak.nbytes > base
    assert traced(RunConfig(method="lora", lora=LoRAConfig(rank=32))).peak.nbytes > base
    assert traced(settings("full")).peak.nbytes > base
    assert traced(settings(gradient_checkpointing=True)).peak.nbytes < base
    assert traced(settings("qlora")).weight_bytes < traced(settings()).weight_bytes


def test_work_follows_the_tokens_and_the_passes() -> None:
    one = traced(settings()).cost
    accumulated = traced(settings(), BatchShape(2, 96, passes=4)).cost
    assert flops(accumulated) == 4 * flops(one)
    recomputed = traced(settings(gradient_checkpointing=True)).cost
    assert flops(recomputed) > 1.2 * flops(one)


def test_only_supervised_tokens_reach_the_output_layer() -> None:
    few, all_of_them = (
        traced(settings(), kind(4, 96)).cost["cross_entropy float32"]
        for kind in (Partly, BatchShape)
    )
    assert all_of_them * 39 == few * 95


def test_lora_is_traced_through_its_own_product() -> None:
    cost = traced(settings("lora")).cost
    assert cost["nf4_linear float32"] > 10 * cost["matmul float32"]


def test_packed_rows_bring_a_mask() -> None:
    plain, packed = (
        traced(settings(), BatchShape(2, 512, sequences=n)).peak.nbytes for n in (1, 2)
    )
    assert packed >= plain + 512 * 512


def test_a_gpu_is_planned_without_one() -> None:
    trace = traced(settings("qlora", gradient_checkpointing=True), device="cuda")
    assert trace.peak.phase == "backward"
    assert trace.peak.components["quantization_state"] > 0


def test_the_peak_names_its_module_and_adds_up() -> None:
    peak = traced(settings(gradient_checkpointing=True), BatchShape(8, 512)).peak
    assert "layers." in peak.module
    assert sum(peak.components.values()) == peak.nbytes
    assert {"weights", "adapters", "optimizer", "activations"} <= peak.components.keys()
