"""Answers an accelerator's memory running out during a run, with the settings that need less."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from graftlm.config import RunConfig
from graftlm.errors import TrainingError
from graftlm.system.placement import Placement, out_of_memory

__all__ = ["memory_explained", "needs_less"]

SMALL_PART = 512
"""Positions of a micro-batch that are suggested where batches are computed whole."""


@contextlib.contextmanager
def memory_explained(config: RunConfig, placement: Placement) -> Iterator[None]:
    """Turn the error of an accelerator without memory into one that says what would need less.

    Raises:
        TrainingError: the accelerator's memory ran out.
    """
    try:
        yield
    except Exception as error:
        if placement.runs_on_cpu or not out_of_memory(error):
            raise
        raise TrainingError(
            f"the memory of {placement.name} ran out ({_first_sentence(error)}); the run had "
            f"{placement.peak_memory() / 1e9:.1f} GB in use at its peak. What needs less, the "
            f"cheapest first: {'; '.join(needs_less(config))}. "
            f"`graftlm plan {config.model.name} --device {placement.device} "
            f"--max-length {config.data.max_length}` says what fits."
        ) from error


def needs_less(config: RunConfig) -> list[str]:
    """The changes of ``config`` that lower the peak, in the order in which a plan tries them."""
    changes, train = [], config.train
    if not train.micro_batch_tokens or train.micro_batch_tokens > SMALL_PART:
        changes.append(f"train.micro_batch_tokens={SMALL_PART} (the same update in parts)")
    if not train.gradient_checkpointing:
        changes.append("train.gradient_checkpointing=true (slower by about a third)")
    if config.model.embeddings != "int8" and config.method != "full":
        changes.append("model.embeddings=int8")
    if config.method != "full" and config.model.offload != "layers":
        changes.append("model.offload=layers (in host memory; much slower)")
    if config.method != "qlora":
        changes.append("--method qlora (the base in 4 bits)")
    changes.append(f"data.max_length below {config.data.max_length}, or a smaller model")
    return changes


def _first_sentence(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].partition(". ")[0]
