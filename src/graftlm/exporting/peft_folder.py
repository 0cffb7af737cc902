"""Export target `peft`: a checked copy of the adapter's folder in PEFT's format."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from graftlm.adapters.adapted import lora_modules
from graftlm.adapters.adapter_folder import adapter_folder
from graftlm.adapters.peft_format import load_adapter
from graftlm.adapters.variant_of_file import marks
from graftlm.exporting.compare_logits import compare
from graftlm.exporting.model_card import card_of_adapter, write_card
from graftlm.exporting.rules import with_adapter
from graftlm.exporting.target import ExportTarget, Proof, register_target
from graftlm.files import atomic_folder, require_free_space
from graftlm.models import load_model

__all__ = ["PeftFolder"]


class PeftFolder(ExportTarget):
    """A folder that PEFT and vLLM load together with the base model."""

    form: ClassVar[str] = "adapter"
    """The form on the model card."""

    def check(self, adapter: Path, base: str) -> list[str]:
        """Check that every tensor fits the base, and that PEFT knows this kind of adapter."""
        model, problems = with_adapter(adapter, base)
        return problems or PeftFolder.rules(self, model)

    def rules(self, model: nn.Module) -> list[str]:
        """A variant that PEFT knows."""
        kinds = {module.variant for module in lora_modules(model).values() if module.rank}
        variants = sorted(kind for kind in kinds if marks(kind).get("peft_type") != "LORA")
        return [
            f"PEFT does not know adapters of the variant {variant!r}; export another form"
            for variant in variants
        ]

    def write(self, adapter: Path, base: str, out: Path) -> dict[str, Any]:
        """Copy the files of the adapter's folder, but not its subfolders."""
        files = [file for file in sorted(adapter_folder(adapter).iterdir()) if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        require_free_space(out, size, "Copying the adapter")
        with atomic_folder(out) as folder:
            for file in files:
                shutil.copyfile(file, folder / file.name)
            write_card(folder, card_of_adapter(adapter, base, self.form, {}))
            names = sorted(file.name for file in folder.iterdir())
        return {"files": names, "bytes": size}

    def verify(self, adapter: Path, base: str, out: Path) -> Proof:
        """Compare logits of the copied adapter on its base with those of the original."""

        def written() -> nn.Module:
            model: nn.Module = load_model(base, quantize=None, device="cpu")[0]
            load_adapter(model, out)
            return model

        return compare(adapter, base, written, "original")


register_target("peft", PeftFolder)
