"""Adapters that PEFT made with options drawn at random: the same logits here, or a refusal.

    python benchmarks/peft_random.py [--count 200] [--seed 0]

Each is drawn over the families of `tests/oracles/model_families.py`: ranks, scalings, patterns,
targets in every form, excluded modules, layers by index, DoRA, biases, modules trained whole, tied
or not, rows of tokens, experts and a longer vocabulary. Every trained number is moved at random, so
that nothing is left at zero. A draw that PEFT itself refuses is drawn again. Ends with the counts
and the largest difference; a silent difference makes the exit code 1.
"""

from __future__ import annotations

import argparse
import collections
import logging
import random
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from graftlm.adapters.peft_format import load_adapter
from graftlm.errors import GraftLMError
from tests.oracles.model_families import FAMILIES, tiny_model

IDS = torch.arange(1, 25).view(2, 12)
CLOSE = 2e-4
"""Largest difference of logits; they are of the order of one, and both compute in float32."""
TARGETS: dict[str, list[str]] = {
    "gpt2": ["c_attn", "c_proj", "c_fc", "wte", "lm_head"],
    "opt": ["q_proj", "v_proj", "fc1", "fc2", "embed_tokens", "lm_head"],
    "falcon": ["query_key_value", "dense", "dense_h_to_4h", "word_embeddings", "lm_head"],
    "phi3": ["qkv_proj", "o_proj", "down_proj", "embed_tokens", "lm_head"],
    "mixtral": ["q_proj", "v_proj", "o_proj", "embed_tokens", "lm_head"],
}
USUAL = ["q_proj", "k_proj", "o_proj", "up_proj", "down_proj", "embed_tokens", "lm_head"]
NORMS = {"gpt2": "ln_f", "opt": "final_layer_norm", "falcon": "ln_f"}


def drawn(family: str, draw: random.Random) -> dict[str, Any]:
    """Options of `LoraConfig`."""
    every = TARGETS.get(family, USUAL)
    layers, ends = every[:-2], every[-2:]

    def chance(share: float) -> bool:
        return draw.random() < share

    targets: Any = draw.sample(layers, draw.randint(1, len(layers)))
    targets += [end for end in ends if chance(0.15)]
    options: dict[str, Any] = {
        "r": draw.choice([1, 2, 4, 8]),
        "lora_alpha": draw.choice([0.5, 1, 4, 6, 16]),
        "use_rslora": chance(0.3),
        "use_dora": chance(0.2),
        "bias": draw.choice(["none", "none", "none", "lora_only", "all"]),
        "lora_bias": chance(0.15),
        "init_lora_weights": draw.choice([True, True, "gaussian", "orthogonal", "pissa", "olora"]),
        "lora_dropout": draw.choice([0.0, 0.1]),
    }
    if chance(0.3):
        options["rank_pattern"] = {draw.choice(targets): draw.choice([1, 3, 5])}
    if chance(0.3):
        options["alpha_pattern"] = {rf".*\.1\..*{draw.choice(targets)}": draw.choice([2, 7])}
    form = draw.choice(["list", "list", "list", "expression", "all-linear"])
    if form == "expression":
        targets = rf".*\.({'|'.join(targets)})"
    elif form == "all-linear":
        targets = "all-linear"
    options["target_modules"] = targets
    if form == "list" and chance(0.2):
        options["layers_to_transform"] = draw.choice([0, [1], [0, 1], []])
    if chance(0.15):
        options["exclude_modules"] = [draw.choice(layers)]
    if chance(0.3):
        named = [*ends, NORMS.get(family, "norm")]
        options["modules_to_save"] = draw.sample(named, draw.randint(1, 2))
        options["ensure_weight_tying"] = chance(0.4)
    if chance(0.25):
        rows = draw.sample(range(250), draw.randint(1, 5))
        options["trainable_token_indices"] = draw.choice([rows, {ends[0]: rows, ends[1]: rows}])
    if chance(0.05):
        options["layer_replication"] = [[0, 2], [1, 2]]
    if family == "mixtral" and chance(0.4):
        names = ["experts.gate_up_proj", "experts.down_proj"]
        options["target_parameters"] = draw.sample(names, draw.randint(1, 2))
        options |= {"lora_dropout": 0.0, "use_dora": False, "lora_bias": False}
    return options


def made(family: str, options: dict[str, Any], rows: int, folder: Path) -> peft.PeftModel:
    """PEFT's adapter, moved at random and saved."""
    model = tiny_model(family)
    if rows:
        tiny_model(family).save_pretrained(folder / "base")
        model.resize_token_embeddings(rows)
    config = peft.LoraConfig(task_type="CAUSAL_LM", **options)
    if rows:
        config.base_model_name_or_path = model.name_or_path = str(folder / "base")
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    adapted.save_pretrained(folder / "adapter")
    return adapted.eval()


def logits(model: nn.Module) -> torch.Tensor:
    """Of two short rows."""
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=IDS).logits
    return result


def main() -> int:
    """Print each draw that is not equal, and the counts."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--count", type=int, default=200)
    options.add_argument("--seed", type=int, default=0)
    asked = options.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    draw, counts = random.Random(asked.seed), collections.Counter[str]()
    refusals, largest = collections.Counter[str](), 0.0
    while counts["equal"] + counts["refused"] + counts["DIFFERENT"] < asked.count:
        family = draw.choice(list(FAMILIES))
        settings, rows = drawn(family, draw), 264 if draw.random() < 0.1 else 0
        torch.manual_seed(draw.randrange(2**31))
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            try:
                theirs = made(family, settings, rows, folder)
            except Exception:  # PEFT's own refusals have many types
                counts["refused by PEFT"] += 1
                continue
            here = tiny_model(family)
            try:
                load_adapter(here, folder / "adapter")
            except GraftLMError as error:
                counts["refused"] += 1
                refusals[" ".join(str(error).split())[-90:]] += 1
                continue
            gap = float((logits(here) - logits(theirs)).abs().max())
        largest = max(largest, gap if gap <= CLOSE else 0.0)
        counts["equal" if gap <= CLOSE else "DIFFERENT"] += 1
        if not gap <= CLOSE:
            print(
                f"DIFFERENT by {gap:.2e}: {family}, {rows or 'usual'} rows, {settings}", flush=True
            )
    for text, count in refusals.most_common():
        print(f"refused {count}×: … {text}")
    print(f"{dict(counts)}; largest difference where equal {largest:.1e}")
    return bool(counts["DIFFERENT"])


if __name__ == "__main__":
    sys.exit(main())
