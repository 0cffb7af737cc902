"""Applies the recommendation of a plan to a request: `graftlm train` with open settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from graftlm.config import RunConfig, contradictions
from graftlm.errors import ConfigError, ResourceError
from graftlm.planning.plan import make_plan
from graftlm.planning.planner import as_setting
from graftlm.system.devices import say_once
from graftlm.system.placement import DEVICES, candidates, placement_for
from graftlm.training.resolve import needs_plan

__all__ = ["Decision", "choose", "decision"]


class Decision(NamedTuple):
    """A request with nothing left open that a plan decides, and why it is so."""

    config: RunConfig
    why: str


def choose(
    config: RunConfig, lengths: Sequence[int] = (), *, limit: int | None = None, processes: int = 1
) -> RunConfig:
    """Settings that fit in `config.memory`, or in the free memory; see `decision`."""
    return decision(config, lengths, limit=limit, processes=processes).config


def decision(
    config: RunConfig, lengths: Sequence[int] = (), *, limit: int | None = None, processes: int = 1
) -> Decision:
    """Settings that fit in `config.memory`, or in the free memory.

    ``method: auto`` leaves all choices to the plan; ``gradient_checkpointing: auto`` leaves this
    one, and ``distributed: auto`` DDP or FSDP2. The plan chooses the size of a micro-batch unless
    `micro_batch_tokens` is set, and the storage of the embeddings unless `embeddings` is set.

    Args:
        config: the request.
        lengths: tokens of each row; by default every row is as long as ``max_length``.
        limit: bytes available to each process, if the request names no limit; by default the free
            memory.
        processes: how many train together.

    Raises:
        ResourceError: nothing fits; the message gives the missing memory and the cheapest change.
    """
    if problems := contradictions(config):
        raise ConfigError(problems)
    if config.device == "auto" and candidates():
        return _on_the_best_device(config, lengths, limit, processes)
    placement = placement_for(config.device)
    auto = config.method == "auto"
    available = limit if placement.runs_on_cpu else placement.free_memory()
    plan = make_plan(
        config,
        device=DEVICES[not placement.runs_on_cpu],
        memory=available if config.memory == "unlimited" else config.memory,
        methods=("lora", "qlora") if auto else (config.method,),  # type: ignore[arg-type]
        lengths=lengths,
        only_recommended=True,
        processes=processes,
    )
    chosen = plan.recommendation
    if chosen.missing:
        raise ResourceError(f"{chosen.why}.")
    setting = chosen.option.setting
    checkpointing = config.train.gradient_checkpointing
    if checkpointing == "auto":
        checkpointing = setting.gradient_checkpointing
    asked = as_setting(config, setting.method, checkpointing)
    asked = dataclasses.replace(asked, distributed=setting.distributed)
    if asked.micro_batch_tokens is None:
        asked = dataclasses.replace(asked, micro_batch_tokens=setting.micro_batch_tokens)
    if config.model.embeddings == "auto":
        asked = dataclasses.replace(asked, embeddings=setting.embeddings)
    if config.model.offload == "auto":
        asked = dataclasses.replace(asked, offload=setting.offload)
    if not auto and setting != asked:
        raise ResourceError(f"as asked it does not fit: {chosen.why}. Run: {plan.command}")
    return Decision(setting.applied(config), chosen.why)


def _on_the_best_device(
    config: RunConfig, lengths: Sequence[int], limit: int | None, processes: int
) -> Decision:
    """The request decided for the first accelerator that it fits on, else for the CPU."""
    for placement in candidates():
        there = config.model_copy(update={"device": str(placement.first)})
        try:
            chosen = decision(there, lengths, processes=processes)
        except ResourceError as error:
            say_once(f"device: not {placement.name}: {error}")
        else:
            say_once(f"device: {placement.name}, where the run fits by plan")
            return chosen
    here = config.model_copy(update={"device": "cpu"})
    if not needs_plan(here, processes):
        return Decision(here, "")
    return decision(here, lengths, limit=limit, processes=processes)
