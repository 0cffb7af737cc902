"""Under FSDP2 a rank reads and quantises only what it will hold, with the bits of the whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from graftlm.models import quantize_folder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gloo")

SCRIPT = Path(__file__).with_name("ranks_load.py")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> dict[str, Path]:
    """A Llama, a Gemma 3 with a tied table, a mixture of experts; and a folder in NF4.

    Neither rows nor bytes divide by three.
    """
    import torch
    from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, MixtralConfig

    torch.manual_seed(0)
    sizes = {"vocab_size": 261, "num_hidden_layers": 2, "num_attention_heads": 4}
    configs = {
        "untied": LlamaConfig(
            **sizes, hidden_size=72, intermediate_size=99, num_key_value_heads=2,
            tie_word_embeddings=False,
        ),
        "tied": Gemma3TextConfig(
            **sizes, hidden_size=40, intermediate_size=77, num_key_value_heads=1, head_dim=10,
            tie_word_embeddings=True,
        ),
        "mixture": MixtralConfig(
            **sizes, hidden_size=32, intermediate_size=48, num_key_value_heads=2,
            num_local_experts=4,
        ),
    }  # fmt: skip
    folders = {}
    for name, config in configs.items():
        folders[name] = tmp_path_factory.mktemp("loading") / name
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(folders[name])
        tiny_tokenizer.save_pretrained(folders[name])
    folders["nf4"] = tmp_path_factory.mktemp("loading") / "nf4"
    quantize_folder(folders["untied"], folders["nf4"])
    return folders


def test_a_rank_loads_its_share(models: dict[str, Path]) -> None:
    pairs = [("qlora", "untied"), ("qlora", "tied"), ("lora", "tied"), ("qlora", "nf4")]
    pairs += [("qlora", "mixture"), ("lora", "mixture")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "3", str(SCRIPT)]
    command += [word for method, kind in pairs for word in (method, str(models[kind]))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split(", ")[0] for line in done.stdout.splitlines()]
    assert lines == [f"equal: {method} {kind}" for method, kind in pairs]
