"""Load adapters that PEFT made with options drawn at random: equal logits, or a clear refusal.

    python benchmarks/peft_adapters.py [--count 200] [--seed 0]

Each adapter is made by PEFT for a tiny random model of one of ten architectures, filled with random
numbers, saved by PEFT, and loaded here into the same model. It ends

    equal        the logits are those of PEFT's model
    refused      graftlm's own sentence, or PEFT itself refused the options
    DIFFERENT    other logits, without a word: a fault
    TRACEBACK    an error that is not graftlm's

Prints a row of CSV for each adapter and the counts; the exit code is 1 if there was a fault.
"""

from __future__ import annotations

import argparse
import collections
import json
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

from graftlm.adapters.layers import linear_shape
from graftlm.adapters.peft_format import load_adapter
from graftlm.errors import GraftLMError
from tests.oracles.tiny_architectures import tiny_model

ARCHITECTURES = (
    *("llama", "gpt2", "gemma3_text", "qwen3_moe", "mamba"),
    *("opt", "phi3", "falcon", "deepseek_v3", "gpt_neox"),
)
IDS = torch.arange(1, 25).view(2, 12)
ROUNDING = 2e-3
"""Largest difference of logits, in their standard deviations."""


def drawn(model: nn.Module, dice: random.Random) -> dict[str, Any]:
    """Options of `peft.LoraConfig`: usual ones always, each unusual one now and then."""
    names = [name for name, module in model.named_modules() if linear_shape(module) is not None]
    ends = sorted({name.rpartition(".")[2] for name in names if "lm_head" not in name})
    some = dice.sample(ends, dice.randint(1, min(3, len(ends))))
    layers = [name for name in names if any(name.endswith(end) for end in some)]
    options: dict[str, Any] = {
        "r": dice.choice([1, 2, 4, 8]),
        "lora_alpha": dice.choice([1, 4, 16, 0.5]),
        "target_modules": some,
        "task_type": dice.choice(["CAUSAL_LM", None]),
    }

    def now_and_then(chance: float, **entries: Any) -> None:
        if dice.random() < chance:
            options.update(entries)

    now_and_then(0.15, target_modules="all-linear")
    now_and_then(0.15, target_modules=rf".*\.({'|'.join(some)})")
    now_and_then(0.1, target_modules=[*some, dice.choice(layers)])
    now_and_then(0.1, exclude_modules=[dice.choice(ends)])
    now_and_then(0.3, use_rslora=True)
    now_and_then(0.3, lora_dropout=0.1)
    now_and_then(0.2, rank_pattern={dice.choice(some): 3})
    now_and_then(0.2, alpha_pattern={rf"1\..*{dice.choice(some)}": 7})
    now_and_then(0.15, layers_to_transform=dice.choice([[0], [1, 3], 2, []]))
    now_and_then(0.15, use_dora=True)
    now_and_then(0.1, lora_bias=True)
    now_and_then(0.1, bias=dice.choice(["all", "lora_only"]))
    now_and_then(0.1, init_lora_weights=dice.choice(["gaussian", "olora", "pissa", "orthogonal"]))
    now_and_then(0.1, modules_to_save=[dice.choice(["lm_head", "embed_tokens", ends[0]])])
    now_and_then(0.1, trainable_token_indices=[1, 5])
    now_and_then(0.1, layer_replication=[[0, 2], [1, 4]])
    return options


def logits(model: nn.Module) -> torch.Tensor:
    """In evaluation mode, without gradients."""
    with torch.no_grad():
        result: torch.Tensor = model.eval()(input_ids=IDS, use_cache=False).logits
    return result


def outcome(model_type: str, dice: random.Random, folder: Path) -> tuple[dict[str, Any], str]:
    """The options drawn, and how the adapter ended."""
    options = drawn(tiny_model(model_type), dice)
    try:
        made = peft.get_peft_model(tiny_model(model_type), peft.LoraConfig(**options))
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in made.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        made.save_pretrained(folder)
        expected = logits(peft.PeftModel.from_pretrained(tiny_model(model_type), folder))
    except Exception as error:  # PEFT has no class of its own for what it refuses
        return options, f"refused by PEFT itself: {type(error).__name__}: {_line(error)}"
    here = tiny_model(model_type)
    plain = logits(here)
    try:
        load_adapter(here, folder)
        ours = logits(here)
    except GraftLMError as error:
        return options, f"refused: {_line(error)}"
    except Exception as error:
        return options, f"TRACEBACK {type(error).__name__}: {_line(error)}"
    off = float((ours - expected).abs().max() / expected.std())
    if not off <= ROUNDING:
        return options, f"DIFFERENT: {off:.2g} of the spread"
    if torch.equal(expected, plain):
        return options, "equal (the adapter changes nothing)"
    return options, f"equal ({off:.0e})"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    counts: collections.Counter[str] = collections.Counter()
    print(f"peft {peft.__version__}\narchitecture,outcome,options")
    for number in range(args.count):
        model_type = ARCHITECTURES[number % len(ARCHITECTURES)]
        with tempfile.TemporaryDirectory() as folder:
            options, said = outcome(
                model_type, random.Random(f"{args.seed} {number}"), Path(folder)
            )
        counts["refused by PEFT" if "PEFT itself" in said else said.split()[0].rstrip(":")] += 1
        print(f'{model_type},"{said}","{json.dumps(options)}"', flush=True)
    print(dict(counts))
    sys.exit(1 if counts["DIFFERENT"] or counts["TRACEBACK"] else 0)


if __name__ == "__main__":
    main()
