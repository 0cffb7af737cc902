"""Export target `peft`: a checked copy of the adapter's folder in PEFT's format."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from torch import nn

from graftlm.adapters.adapter_folder import adapter_folder
from graftlm.adapters.peft_config import read_config
from graftlm.adapters.peft_format import load_adapter
from graftlm.adapters.variant_of_file import marks
from graftlm.errors import GraftLMError
from graftlm.export.compare_logits import compare
from graftlm.export.target import ExportTarget, Proof, register_target
from graftlm.files import atomic_folder, require_free_space
from graftlm.models import load_model, resolve
from graftlm.models.load import empty_model, load_config

__all__ = ["PeftFolder"]


class PeftFolder(ExportTarget):
    """A folder that PEFT and vLLM load together with the base model."""

    def check(self, adapter: Path, base: str) -> list[str]:
        """Check that every tensor fits the base, and that PEFT knows this kind of adapter."""
        try:
            config = load_config(resolve(base).path)
            config.__dict__.pop("quantization_config", None)
            load_adapter(empty_model(config), adapter)
        except GraftLMError as error:
            return [str(error)]
        variant = read_config(adapter_folder(adapter)).variant
        if marks(variant).get("peft_type") != "LORA":
            return [f"PEFT does not know adapters of the variant {variant!r}; export another form"]
        return []

    def write(self, adapter: Path, base: str, out: Path) -> dict[str, Any]:
        """Copy the files of the adapter's folder, but not its subfolders."""
        files = [file for file in sorted(adapter_folder(adapter).iterdir()) if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        require_free_space(out, size, "Copying the adapter")
        with atomic_folder(out) as folder:
            for file in files:
                shutil.copyfile(file, folder / file.name)
        return {"files": [file.name for file in files], "bytes": size}

    def verify(self, adapter: Path, base: str, out: Path) -> Proof:
        """Compare logits of the copied adapter on its base with those of the original."""

        def written() -> nn.Module:
            model: nn.Module = load_model(base, quantize=None, device="cpu")[0]
            load_adapter(model, out)
            return model

        return compare(adapter, base, written, "original")


register_target("peft", PeftFolder)
