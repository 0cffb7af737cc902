"""Carry adapters between graftlm and PEFT, both ways, over every supported family.

    python benchmarks/peft_roundtrip.py

A row a family: the largest difference between the logits of the two libraries for an adapter made
here and read by PEFT, for one made by PEFT (rank and alpha patterns, rsLoRA) and read here, for
PEFT's own merge against ours, and between the merged model and the adapter on its base. All in
float32 on random models of two layers. Ends with the largest of all.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from graftlm.adapters import add_lora, lora_modules, lora_parameters, merge_in_place
from graftlm.adapters.peft_format import load_adapter, save_adapter
from graftlm.config import LoRAConfig
from tests.oracles.model_families import FAMILIES, tiny_model

IDS = torch.arange(1, 25).view(2, 12)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def distance(a: nn.Module, b: nn.Module) -> float:
    return float((logits(a) - logits(b)).abs().max())


def ours(family: str) -> nn.Module:
    """A model with graftlm adapters whose update is not zero."""
    model = tiny_model(family)
    add_lora(model, LoRAConfig(rank=4, alpha=8))
    with torch.no_grad():
        for _, parameter in lora_parameters(model):
            parameter.normal_(std=0.2)
    return model


def theirs(family: str, endings: list[str]) -> peft.PeftModel:
    """A model with PEFT adapters: patterns, rsLoRA, and an update that is not zero."""
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=endings,
        rank_pattern={endings[0]: 3},
        alpha_pattern={f"1.*{endings[-1]}": 5},
        use_rslora=True,
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(tiny_model(family), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    return model.eval()


def row(family: str, folder: Path) -> dict[str, Any]:
    there = ours(family)
    save_adapter(there, folder / "ours", base_name="base")
    by_peft = peft.PeftModel.from_pretrained(tiny_model(family), folder / "ours").eval()
    back = theirs(family, sorted({name.rpartition(".")[2] for name in lora_modules(there)}))
    back.save_pretrained(folder / "theirs")
    here = tiny_model(family)
    load_adapter(here, folder / "theirs")
    result = {
        "modules": len(lora_modules(there)),
        "ours_in_peft": distance(there, by_peft),
        "peft_in_ours": distance(here, back),
        "update": distance(there, tiny_model(family)),
        "merged": distance(merge_in_place(ours(family)), there),
        "merged_peft": distance(merge_in_place(here), back.merge_and_unload()),
    }
    assert result["update"] > 1e-2, "the adapter must matter for the comparison to mean anything"
    return result


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    print(", ".join(f"{m.__name__} {m.__version__}" for m in (peft, transformers, torch)))
    print("family,modules,update,ours_in_peft,peft_in_ours,merged,merged_peft")
    largest = 0.0
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            r = row(family, Path(folder))
        figures = [r["ours_in_peft"], r["peft_in_ours"], r["merged"], r["merged_peft"]]
        largest = max(largest, *figures)
        print(
            f"{family},{r['modules']},{r['update']:.3f},"
            + ",".join(f"{figure:.2e}" for figure in figures),
            flush=True,
        )
    print(f"largest logit difference: {largest:.2e}")


if __name__ == "__main__":
    main()
