"""A studio over a temporary runs folder, and a run folder as training leaves it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("fastapi", reason="the extra `studio` is not installed")

from starlette.testclient import TestClient

from graftlm.config import RunConfig
from graftlm.studio.app import create_app
from graftlm.studio.place import Place

TOKEN = "t" * 40
HOST = "127.0.0.1:7860"
MakeRun = Callable[..., Path]


@pytest.fixture(scope="session")
def letters_llama(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama that writes letters, one a token, and never ends by itself."""
    import string

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=20_000,
        bos_token_id=256, eos_token_id=257, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    letters = tiny_tokenizer.convert_tokens_to_ids(list(string.ascii_lowercase))
    with torch.no_grad():
        kept = model.lm_head.weight[letters].clone()
        model.lm_head.weight.zero_()
        model.lm_head.weight[letters] = kept
    folder = tmp_path_factory.mktemp("models") / "letters"
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(tmp_path / "runs")
    made.prepare()
    return made


@pytest.fixture
def client(place: Place) -> Iterator[TestClient]:
    app = create_app(place, TOKEN, {HOST}, most_upload=100_000)
    headers = {"authorization": f"Bearer {TOKEN}"}
    with TestClient(app, base_url=f"http://{HOST}", headers=headers) as opened:
        yield opened


@pytest.fixture
def make_run(place: Place) -> MakeRun:
    def make(name: str = "first", steps: int = 5, finished: bool = True, **config: Any) -> Path:
        folder = place.runs / name
        folder.mkdir(parents=True)
        settings = RunConfig.model_validate(
            {"model": {"name": "gemma-3-270m"}, "train": {"steps": steps}, **config}
        )
        text = yaml.safe_dump(settings.model_dump(mode="json"), allow_unicode=True)
        (folder / "config.yaml").write_text(text, encoding="utf-8")
        write_rows(folder, range(1, steps + 1))
        if finished:
            summary = {
                "finished": True, "steps": steps, "kept_step": steps, "eval_loss_before": 2.0,
                "eval_loss_after": 1.0, "peak_memory_bytes": 10, "tokens_per_second": 5.0,
                "wall_seconds": 9.0, "model": "gemma-3-270m",
            }  # fmt: skip
            (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
        return folder

    return make


def write_rows(folder: Path, steps: range, mode: str = "a") -> None:
    with (folder / "metrics.jsonl").open(mode, encoding="utf-8") as file:
        for step in steps:
            row = {
                "step": step, "loss": 3.0 / step, "tokens": 100, "tokens_per_second": 50.0,
                "learning_rate": 1e-4, "memory_bytes": 10**9,
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")
