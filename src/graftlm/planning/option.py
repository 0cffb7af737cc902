"""A setting that a plan may choose, and what is predicted of it."""

from __future__ import annotations

import dataclasses
from typing import Literal

from graftlm.config import Embeddings, RunConfig
from graftlm.training.resolve import changed, embeddings_of, with_method

__all__ = [
    "METHODS",
    "ROOM",
    "Distributed",
    "Method",
    "Offload",
    "Option",
    "Setting",
    "as_setting",
]

Method = Literal["full", "lora", "qlora"]
Offload = Literal["none", "layers"]
Distributed = Literal["none", "ddp", "fsdp"]
METHODS: tuple[Method, ...] = ("full", "lora", "qlora")
ROOM = 0.08
"""Share of the limit that a recommended setting leaves free: predictions are within 10 %."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """The settings that a plan varies; the others come from the run."""

    method: Method
    gradient_checkpointing: bool
    micro_batch_tokens: int | None
    max_length: int
    embeddings: Embeddings = "keep"
    offload: Offload = "none"
    distributed: Distributed = "none"

    def applied(self, config: RunConfig) -> RunConfig:
        """``config`` with this setting in it. What a plan leaves on the card stays ``auto``."""
        offload = "layers" if self.offload == "layers" else config.model.offload
        engine = config.distributed if self.distributed == "none" else self.distributed
        config = with_method(config, self.method).model_copy(update={"distributed": engine})
        config = changed(config, "data", max_length=self.max_length)
        config = changed(config, "model", embeddings=self.embeddings, offload=offload)
        return changed(
            config,
            "train",
            gradient_checkpointing=self.gradient_checkpointing,
            micro_batch_tokens=self.micro_batch_tokens,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option(Setting):
    """A setting and its predicted memory and time.

    Attributes:
        rows: rows of the largest micro-batch; 1 if its rows are laid end to end.
        length: positions in each of these rows, with padding.
        predicted_peak_bytes: peak of the whole process, with loading; on CUDA, allocated memory.
        components: the bytes of the peak by `COMPONENTS`.
        peak_at: the moment of the peak: ``loading`` or a phase of the step, and the module.
        seconds_per_step: time of a step; ``None`` for a device this machine does not have.
        seconds_uncertainty: its standard deviation.
        fits: whether the peak leaves the share `ROOM` of the limit free.
    """

    rows: int
    length: int
    predicted_peak_bytes: int
    components: dict[str, int]
    peak_at: str
    trainable_parameters: int
    seconds_per_step: float | None
    seconds_uncertainty: float | None
    fits: bool


def as_setting(config: RunConfig, method: Method, checkpointing: bool) -> Setting:
    """The run's own settings, with another method and checkpointing."""
    offload: Offload = "layers" if config.model.offload == "layers" else "none"
    return Setting(
        method,
        checkpointing or offload == "layers",
        config.train.micro_batch_tokens,
        config.data.max_length,
        embeddings_of(config.model_copy(update={"method": method})),
        offload,
    )
