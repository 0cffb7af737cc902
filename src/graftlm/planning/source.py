"""What is known of a model before it is loaded, and the memory that loading it adds."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from graftlm.config import RunConfig
from graftlm.errors import ModelError
from graftlm.models import resolve
from graftlm.models.assemble import empty_model
from graftlm.models.experts import expert_weights
from graftlm.models.load import load_config, pick_dtype
from graftlm.models.prequantized import take_quantization
from graftlm.models.safetensors_file import Checkpoint

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["Source", "source_of"]


@dataclasses.dataclass(frozen=True)
class Source:
    """A model as a plan sees it.

    Attributes:
        architecture: its transformers config.
        folder: its folder, for the tokenizer; ``None`` if only the config is given.
        checkpoint: its tensors; ``None`` before the download.
    """

    architecture: PretrainedConfig
    folder: Path | None = None
    checkpoint: Checkpoint | None = None

    def dtype(self, config: RunConfig) -> torch.dtype:
        """The type of the unquantised weights in a run of ``config``."""
        if config.method == "full":
            return torch.float32
        if config.model.dtype == "auto" and self.checkpoint is None:
            kind: torch.dtype | None = self.architecture.get_text_config().dtype  # type: ignore[assignment]
            return kind or torch.bfloat16
        checkpoint: Any = self.checkpoint
        return pick_dtype(config.model.dtype, self.architecture, checkpoint)

    @property
    def can_recompute(self) -> bool:
        """Whether the model's class can recompute activations; assumed of code in the folder."""
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

        kind = type(self.architecture)
        if kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
            return True
        model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[kind]
        return bool(model.supports_gradient_checkpointing)

    def loading_bytes(self, config: RunConfig) -> int:
        """Additional bytes while the largest tensor that changes its type is read.

        A tensor that keeps its type is read directly into the model. A tensor that changes its
        type, or is quantised, exists twice for a moment.
        """
        text: Any = self.architecture.get_text_config()
        dtype, qlora = self.dtype(config), config.method == "qlora"
        table = text.vocab_size * text.hidden_size
        if self.checkpoint is None:
            inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
            inner = max(inner) if isinstance(inner, list) else inner  # Gemma 3n: one a layer
            # Embeddings and heads keep their type when the rest is quantised.
            sizes = [dtype.itemsize * max(inner * text.hidden_size, 0 if qlora else table)]
        else:
            sizes = [
                math.prod(entry.shape) * entry.dtype.itemsize
                for entry in self.checkpoint.values()
                if entry.dtype != dtype
                or (qlora and len(entry.shape) == 2 and entry.shape[0] != text.vocab_size)
            ]
        if qlora and "expert" in " ".join(text.to_dict()):
            # The parts of fused experts are all read, stacked and joined before they are stored.
            empty = empty_model(self.architecture, config.model.trust_remote_code)
            fused = (math.prod(weight.shape) for weight in expert_weights(empty).values())
            sizes += [2 * size * dtype.itemsize for size in fused]
        if config.model.embeddings == "int8":
            # While the first of table and head becomes codes. If untied: both originals and the
            # codes of the head; later only both codes.
            tied = getattr(self.architecture, "tie_word_embeddings", False)
            sizes.append(table * (dtype.itemsize if tied else 2 * dtype.itemsize - 1))
        return int(max(sizes, default=0))


def source_of(config: RunConfig) -> Source:
    """The model that the settings name; what training refuses is refused.

    Raises:
        ModelError: it cannot be found, or is not a causal language model.
    """
    folder = resolve(config.model.name, trust_remote_code=config.model.trust_remote_code).path
    architecture = load_config(folder, config.model.trust_remote_code)
    take_quantization(architecture, config.model.name)
    try:
        return Source(architecture, folder, Checkpoint(folder))
    except ModelError:  # only the config exists: a plan before the download
        return Source(architecture, folder)
