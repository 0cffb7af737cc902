"""One tiny model in a folder, as the stages of a sweep use it, and its oracle.

Nothing is compared with graftlm itself where another library can answer: the oracles are
transformers' own model of the same folder, torch's cross-entropy and allocator, PEFT, and
bitsandbytes. Everything is computed in float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import graftlm
from graftlm.adapters.adapted import lora_modules, lora_parameters, output_head
from graftlm.adapters.layers import linear_shape
from graftlm.config import LoRAConfig
from graftlm.data.batch import Batch, collate
from graftlm.data.example import Example
from graftlm.training.next_token import next_token_loss
from tests.oracles.tiny_architectures import tiny_model

__all__ = ["DifferentError", "NotTinyError", "OneModel", "close", "experts", "linears", "short"]

ROUNDING = 2e-3
"""Logits and losses may differ by this share of their spread; a forgotten part moves them more."""
RANK = 4


class NotTinyError(Exception):
    """The architecture cannot be built tiny, or transformers itself does not run it."""


class DifferentError(Exception):
    """A result that is not the oracle's."""


class OneModel:
    """One architecture in one folder; what a stage made, later ones use.

    Attributes:
        work: a folder for what the stages write.
        folder: the model.
        ids: token ids (2, 24).
        oracle: transformers' model of the folder.
        expected: its logits for `ids`.
        kept: what stages leave for later ones.
    """

    def __init__(self, model_type: str, work: Path, tokenizer: Any) -> None:
        self.folder, self.work = work / "model", work
        self.ids = torch.randint(1, 250, (2, 24), generator=torch.Generator().manual_seed(1))
        self.kept: dict[str, Any] = {}
        try:
            model = tiny_model(model_type)
            model.save_pretrained(self.folder)
            tokenizer.save_pretrained(self.folder)
            self.oracle = self.by_transformers(self.folder)
            self.expected = self.logits(self.oracle)
            if not self.expected.isfinite().all():
                raise ValueError("its logits are not finite")
        except Exception as error:
            raise NotTinyError(short(error)) from error

    def by_transformers(self, folder: Path) -> Any:
        """The model of a folder, without graftlm."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def logits(self, model: Any) -> Tensor:
        """Of `ids`, without gradients, in evaluation mode."""
        model.eval()
        with torch.no_grad():
            result: Tensor = model(input_ids=self.ids, use_cache=False).logits
        return result.float()

    def load(self, quantize: str | None = None, folder: Path | None = None, **other: Any) -> Any:
        """The model by graftlm."""
        model, self.tokenizer = graftlm.load_model(
            folder or self.folder, quantize=quantize, **other
        )
        return model

    def adapted(self, quantize: str | None = None, strength: float = 0.05) -> Any:
        """The model by graftlm, with adapters whose update is not zero."""
        model = self.load(quantize)
        torch.manual_seed(0)
        self.report = graftlm.add_lora(model, LoRAConfig(rank=RANK))
        with torch.no_grad():
            for _, parameter in lora_parameters(model):
                parameter.normal_(std=strength)
        return model

    def saved_adapter(self) -> Path:
        """The folder of an adapter whose update is not zero; `kept` has the logits with it."""
        folder = self.work / "adapter"
        if not folder.exists():
            model = self.adapted()
            graftlm.save_adapter(model, folder, base_name=str(self.folder))
            self.kept["adapter logits"] = self.logits(model)
            self.kept["gradients"] = self.gradients(model)
        return folder

    def rows(self) -> list[Example]:
        """Four rows of twelve tokens."""
        supervised = [False, *[True] * 11]
        return [Example(self.ids[i % 2, i : i + 12].tolist(), supervised) for i in range(4)]

    def batch(self) -> Batch:
        """`rows` as one batch."""
        return collate(self.rows(), 0)

    def loss(self, model: Any) -> Tensor:
        """The mean loss of `rows` by graftlm."""
        total, count = next_token_loss(model, self.batch())
        return total / count

    def gradients(self, model: Any) -> dict[str, Tensor]:
        """The gradient of the loss for each adapter's parameter, by its key in PEFT."""
        model.eval()
        self.loss(model).backward()
        return {
            f"{name}.{key}": parameter.grad
            for name, module in lora_modules(model).items()
            for key, parameter in zip(
                module.peft_state(), module.adapter_parameters().values(), strict=True
            )
            if parameter.grad is not None
        }


def close(
    ours: Tensor, theirs: Tensor, spread: float | None = None, rounding: float = ROUNDING
) -> str:
    """The largest difference in spreads of ``theirs``; a fault if it is above ``rounding``."""
    relative = float((ours - theirs).abs().max()) / (spread or float(theirs.std()) + 1e-9)
    if not relative <= rounding:
        raise DifferentError(f"{relative:.2g} of the spread")
    return f"{relative:.0e}"


def linears(model: nn.Module) -> dict[str, Any]:
    """Every linear layer except the output head, by name."""
    head = output_head(model)
    return {
        name: module
        for name, module in model.named_modules()
        if module is not head and linear_shape(module) is not None
    }


def experts(model: nn.Module) -> dict[str, Tensor]:
    """The weights of experts that are no linear layers: in three dimensions, or in two (DBRX)."""
    return {
        f"{name}.{key}": weight
        for name, module in model.named_modules()
        if "expert" in type(module).__name__.lower() and linear_shape(module) is None
        for key, weight in module.named_parameters(recurse=False)
        if weight.dim() > 2 or (weight.dim() == 2 and "bias" not in key)
    }


def short(error: BaseException, limit: int = 220) -> str:
    """The message in one line."""
    return f"{' '.join(str(error).split())[:limit]}" or type(error).__name__
