"""Export target `mlx`: the adapter as mlx-lm lays it out.

mlx-lm computes `y = W x + scale · (x A) B` with A [in, r] and B [r, out], both transposed against
PEFT's, one rank and one scale for all layers, named by ``keys`` inside the last ``num_layers``
blocks. Source: mlx-lm's `tuner/lora.py` and `tuner/utils.py`, read in 2026. mlx runs on Apple's
machines only: the files are checked against this layout, and no mlx has loaded them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from graftlm.adapters.adapted import lora_modules
from graftlm.adapters.lora_linear import LoRALinear
from graftlm.adapters.peft_format import load_adapter
from graftlm.exporting.model_card import card_of_adapter, write_card
from graftlm.exporting.rules import effect_rules, file_rules, with_adapter
from graftlm.exporting.target import ExportTarget, Proof, register_target
from graftlm.files import atomic_folder, require_free_space, write_json
from graftlm.models import resolve
from graftlm.models.load import empty_model, load_config

__all__ = ["MlxFolder"]

IN_BLOCK = re.compile(r"model\.layers\.(\d+)\.(.+)")


class MlxFolder(ExportTarget):
    """A folder for `mlx_lm.generate --adapter-path`."""

    def check(self, adapter: Path, base: str) -> list[str]:
        """Check that the adapter is plain LoRA of one rank and scale, inside the blocks."""
        if rules := file_rules(adapter, "mlx"):
            return rules
        model, problems = with_adapter(adapter, base)
        problems = problems or self.rules(model)
        return problems or effect_rules(model, adapter, base, "mlx")

    def rules(self, model: nn.Module) -> list[str]:
        """Plain LoRA of one rank and scale, on the same layers of the last blocks."""
        modules, problems = lora_modules(model), []
        plain = LoRALinear.peft_keys.keys()
        if any(
            type(module) is not LoRALinear or module.adapter_parameters().keys() != plain
            for module in modules.values()
        ):
            problems.append("mlx-lm reads plain LoRA of linear layers here")
        if len({(module.rank, module.scaling) for module in modules.values()}) > 1:
            problems.append("mlx-lm has one rank and one scale for all layers")
        if outside := [name for name in modules if not IN_BLOCK.fullmatch(name)]:
            problems.append(f"mlx-lm adapts layers of the blocks only, not {outside[0]}")
        elif len({frozenset(keys) for keys in _by_block(modules).values()}) > 1:
            problems.append("mlx-lm adapts the same layers in every block")
        return problems

    def write(self, adapter: Path, base: str, out: Path) -> dict[str, Any]:
        """Write `adapters.safetensors` and `adapter_config.json`."""
        modules = _modules(adapter, base)
        tensors, settings = _tensors(modules), _settings(modules, _blocks(base))
        require_free_space(out, sum(t.nbytes for t in tensors.values()) + 10**6, "Exporting")
        with atomic_folder(out) as folder:
            save_file(tensors, folder / "adapters.safetensors", {"format": "mlx"})
            write_json(folder / "adapter_config.json", settings)
            write_card(folder, card_of_adapter(adapter, base, "mlx", {}))
        return {"tensors": len(tensors), "num_layers": settings["num_layers"]}

    def verify(self, adapter: Path, base: str, out: Path) -> Proof:
        """Compare the update of each layer, from the written factors, with the adapter's."""
        modules, written = _modules(adapter, base), load_file(out / "adapters.safetensors")
        problems, largest = [], 0.0
        if written.keys() != _tensors(modules).keys():
            problems.append("the file holds other tensors than the adapter")
        for name, module in modules.items():
            if problems:
                break
            A, B = written[f"{name}.lora_a"], written[f"{name}.lora_b"]
            away = float((module.scaling * (A @ B).T - module.delta(module.base.weight)).norm())
            largest = max(largest, away)
            if away > 1e-5 * (1 + float(module.delta(module.base.weight).norm())):
                problems.append(f"{name} is the first layer that differs")
        return Proof(problems, {"largest_difference": largest, "run_by_mlx": False})


def _modules(adapter: Path, base: str) -> dict[str, Any]:
    config = load_config(resolve(base).path)
    config.__dict__.pop("quantization_config", None)
    model = empty_model(config)
    load_adapter(model, adapter)
    return dict(lora_modules(model))


def _blocks(base: str) -> int:
    return int(load_config(resolve(base).path).get_text_config().num_hidden_layers)


def _by_block(modules: dict[str, Any]) -> dict[int, list[str]]:
    blocks: dict[int, list[str]] = {}
    for name in modules:
        place = IN_BLOCK.fullmatch(name)
        assert place is not None
        blocks.setdefault(int(place[1]), []).append(place[2])
    return blocks


def _tensors(modules: dict[str, Any]) -> dict[str, Tensor]:
    tensors = {}
    for name, module in modules.items():
        A, B = (factor.detach().to(torch.float32) for factor in module.factors())
        tensors[f"{name}.lora_a"] = A.T.contiguous()
        tensors[f"{name}.lora_b"] = B.T.contiguous()
    return tensors


def _settings(modules: dict[str, Any], blocks: int) -> dict[str, Any]:
    first = next(iter(modules.values()))
    by_block = _by_block(modules)
    return {
        "fine_tune_type": "lora",
        "num_layers": blocks - min(by_block),
        "lora_parameters": {
            "rank": first.rank,
            "scale": first.scaling,
            "dropout": first.dropout,
            "keys": sorted(by_block[min(by_block)]),
        },
    }


register_target("mlx", MlxFolder)
