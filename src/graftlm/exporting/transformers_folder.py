"""Export target `transformers`: the adapter merged into its base, as by `graftlm merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from graftlm.errors import GraftLMError
from graftlm.exporting.compare_logits import compare
from graftlm.exporting.merge import merge_to_folder
from graftlm.exporting.merge_plan import prepare_merge
from graftlm.exporting.target import ExportTarget, Proof, register_target
from graftlm.models import load_model, resolve

__all__ = ["TransformersFolder"]


class TransformersFolder(ExportTarget):
    """A plain folder for transformers and compatible tools, without a separate adapter."""

    def check(self, adapter: Path, base: str) -> list[str]:
        """Check the names and shapes of both; weights are not read."""
        try:
            prepare_merge(adapter, resolve(base).path, base)
        except GraftLMError as error:
            return [str(error)]
        return []

    def write(self, adapter: Path, base: str, out: Path) -> dict[str, Any]:
        """Write by `merge_to_folder` and return its figures."""
        return merge_to_folder(adapter, out, base=base)

    def verify(self, adapter: Path, base: str, out: Path) -> Proof:
        """Compare logits of the folder with the adapter on the base it was merged onto."""
        onto = prepare_merge(adapter, resolve(base).path, base).onto

        def written() -> nn.Module:
            model: nn.Module = load_model(out, quantize=None, device="cpu")[0]
            return model

        return compare(adapter, base, written, onto)


register_target("transformers", TransformersFolder)
