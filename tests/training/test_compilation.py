"""Compiled layers compute the same; the compiler is the one that only traces."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from graftlm.adapters import add_lora
from graftlm.config import LoRAConfig, ModelConfig, RunConfig, TrainConfig
from graftlm.config.contradictions import contradictions
from graftlm.data import Example
from graftlm.data.batch import Batch, laid_end_to_end
from graftlm.data.pack import pack_examples
from graftlm.errors import ConfigError
from graftlm.models import load_weights
from graftlm.training import run
from graftlm.training.batching import micro_batches
from graftlm.training.compilation import compile_layers
from graftlm.training.next_token import NextToken
from graftlm.training.recompute import recompute_activations
from graftlm.training.step import train_step
from tests.oracles.model_families import tiny_config, tiny_model

ROWS = [Example([5 + i % 50 for i in range(n)], [True] * n) for n in (20, 33, 14)]


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one-layer")
    config = tiny_config("llama")
    config.num_hidden_layers = 1
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def as_on_a_card(model: Any, rows: list[Example]) -> list[Batch]:
    """One row, with borders instead of a mask."""
    return [laid_end_to_end(row) for row in pack_examples(rows, 1000)]


def learned(
    folder: Path, backend: str | None, recompute: bool, batches_of: Callable[..., list[Batch]]
) -> tuple[list[float], Any]:
    """The losses of two steps of QLoRA over rows of different lengths, and the adapter."""
    model = load_weights(folder, quantize="nf4")
    torch.manual_seed(0)
    add_lora(model, LoRAConfig(rank=4))
    if recompute:
        recompute_activations(model)
    objective = NextToken(TrainConfig())
    with torch.no_grad():  # it finds out what the model can do, before anything is compiled
        objective.loss(model, batches_of(model, ROWS)[0])
    if backend is not None:
        assert compile_layers(model, backend) == 1
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    losses = []
    for rows in (ROWS, ROWS[:2]):
        batches = batches_of(model, rows)
        losses.append(train_step(model, batches, optimizer, parameters, 1.0, objective).loss)
    named = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return losses, named


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's own
@pytest.mark.parametrize(
    ("backend", "recompute", "batches_of", "breaks", "graphs"),
    [
        ("aot_eager", False, as_on_a_card, 0, 1),
        ("eager", True, as_on_a_card, 0, 1),
        ("eager", False, micro_batches, 1, 6),
    ],
    ids=["as on a card", "recomputed, as on a card", "by blocks of the mask"],
)
def test_compiled_layers_learn_the_same(
    backend: str, recompute: bool, batches_of: Any, breaks: int, graphs: int, one_layer: Path
) -> None:
    counters = torch._dynamo.utils.counters
    counters.clear()
    losses, adapter = learned(one_layer, backend, recompute, batches_of)
    # A card's layer is one graph, for rows of all lengths. The attention of a CPU cuts it.
    assert len(counters["graph_break"]) == breaks
    assert 0 < counters["stats"]["unique_graphs"] <= graphs
    expected, wanted = learned(one_layer, None, recompute, batches_of)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert adapter.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(adapter[name], value, rtol=1e-3, atol=1e-6)


def test_it_is_off_by_default_and_one_setting_turns_it_on(
    tiny_llama: Path, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    module = importlib.import_module("graftlm.training.train")
    monkeypatch.setattr(module, "compile_layers", calls.append)
    for name, settings in (("off", {}), ("on", {"compile": True})):
        config = RunConfig(
            device="cpu",
            out=str(tmp_path / name),
            model=ModelConfig(name=str(tiny_llama)),
            data={"train": str(rows_file)},  # type: ignore[arg-type]
            train=TrainConfig(steps=1, batch_size=1, **settings),  # type: ignore[arg-type]
        )
        run(config, progress=False)
        assert len(calls) == (name == "on")


def test_what_moves_or_shards_the_layers_is_refused_beside_it() -> None:
    train = TrainConfig(compile=True, gradient_checkpointing=True)
    layers = RunConfig(model=ModelConfig(offload="layers"), train=train)
    sharded = RunConfig(distributed="fsdp", train=train)
    for config in (layers, sharded):
        assert any("train.compile" in problem for problem in contradictions(config))
    assert not contradictions(RunConfig(train=train))


def test_a_model_without_layers_of_their_own_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.compile: Linear has no layers"):
        compile_layers(torch.nn.Linear(2, 2))
    assert compile_layers(tiny_model("gpt2"), "eager") == 2
