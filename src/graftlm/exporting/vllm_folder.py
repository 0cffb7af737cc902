"""Export target `vllm`: PEFT's folder, after the rules of vLLM.

vLLM serves LoRA without bias, of rank at most ``--max-lora-rank`` (16 unless raised), and no DoRA
and no fully trained modules. Source: vLLM's `lora/peft_helper.py`, read in 2026. No vLLM has loaded
what is written here; PEFT does, as for the target `peft`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from graftlm.adapters.adapted import lora_modules
from graftlm.adapters.adapter_folder import adapter_folder
from graftlm.adapters.lora_experts import LoRAExperts
from graftlm.adapters.peft_config import read_config
from graftlm.exporting.peft_folder import PeftFolder
from graftlm.exporting.rules import effect_rules, file_rules, with_adapter
from graftlm.exporting.target import register_target

__all__ = ["VllmFolder"]

DEFAULT_RANK = 16
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values that ``--max-lora-rank`` takes."""


class VllmFolder(PeftFolder):
    """A folder for `vllm serve BASE --enable-lora --lora-modules name=FOLDER`."""

    form = "vllm"

    def check(self, adapter: Path, base: str) -> list[str]:
        """Check what `peft` checks, and vLLM's rules."""
        problems = file_rules(adapter, "vllm") + super().check(adapter, base)
        model = with_adapter(adapter, base)[0]
        problems = problems or self.rules(model)
        return problems or effect_rules(model, adapter, base, "vllm")

    def rules(self, model: nn.Module) -> list[str]:
        """Plain LoRA of linear layers, of a rank that vLLM can be told."""
        modules, problems = lora_modules(model), []
        rank = max(module.rank for module in modules.values())
        if rank > RANKS[-1]:
            problems.append(f"rank {rank} is above {RANKS[-1]}, the most that vLLM serves")
        problems += [
            f"{name}: vLLM serves plain LoRA, not {module.variant!r}"
            for name, module in modules.items()
            if module.variant != "lora"
        ][:1]
        if any(isinstance(module, LoRAExperts) for module in modules.values()):
            problems.append("vLLM has no adapters on single parameters (target_parameters)")
        return problems

    def write(self, adapter: Path, base: str, out: Path) -> dict[str, Any]:
        """Copy the files; say with which options vLLM takes them."""
        rank = _largest_rank(adapter, base)
        options = ["--enable-lora", f"--lora-modules tuned={out}"]
        if rank > DEFAULT_RANK:
            options.append(f"--max-lora-rank {min(size for size in RANKS if size >= rank)}")
        name = read_config(adapter_folder(adapter)).base_model_name_or_path or base
        return {
            **super().write(adapter, base, out),
            "command": " ".join(["vllm serve", name, *options]),
        }


def _largest_rank(adapter: Path, base: str) -> int:
    model, _ = with_adapter(adapter, base)
    return max(module.rank for module in lora_modules(model).values())


register_target("vllm", VllmFolder)
