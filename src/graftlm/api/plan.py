"""`graftlm.plan`: whether a run fits, and which method to use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from graftlm.api.rows import Rows
from graftlm.api.settings import settings_of
from graftlm.config import RunConfig
from graftlm.planning import Plan, make_plan, row_lengths
from graftlm.planning.deadline import PLAN_SECONDS
from graftlm.planning.option import METHODS, Method
from graftlm.system.placement import DEVICES, candidates

__all__ = ["plan"]


def plan(
    model: str | RunConfig,
    data: Rows | None = None,
    *,
    memory: str | int | None = None,
    device: str = "auto",
    card: str | None = None,
    max_length: int | None = None,
    batch_size: int | None = None,
    rank: int | None = None,
    methods: Sequence[Method] = METHODS,
    verify: Literal["recommended", "all"] | None = None,
    progress: Callable[[str], None] = lambda text: None,
    processes: int = 1,
    time_limit: float = PLAN_SECONDS,
) -> Plan:
    """Predict memory and time of a run, as `graftlm plan` does, before it starts.

    Args:
        model: the name of a model, or the settings of the run.
        data: the rows, to plan for their lengths; by default every row has ``max_length`` tokens.
        memory: the limit, such as ``"6GB"``; by default the free memory.
        device: ``cpu`` or ``cuda``, which need not be here; ``auto``: what is here.
        card: a GPU by name, with its data sheet: ``"T4"``, ``"A100"``, ….
        max_length: tokens of a row.
        batch_size: rows of a batch.
        rank: of the adapters.
        methods: the methods to consider.
        verify: also run the recommended settings, or all that fit, and measure.
        progress: is called with a description of the current work.
        processes: how many train together; memory is that of each.
        time_limit: seconds after which it gives up; trial runs have a limit of their own.

    Raises:
        ConfigError: a setting is wrong.
        ModelError: the model cannot be found, or is no causal language model.
        ResourceError: the time limit is over; the message says where the plan was.
    """
    config = settings_of(
        model,
        data,
        data__max_length=max_length,
        train__batch_size=batch_size,
        lora__rank=rank,
    )
    return make_plan(
        config,
        memory=memory,
        device=DEVICES[bool(card or candidates())] if device == "auto" else device,
        card=card,
        methods=methods,
        lengths=row_lengths(config) if config.data.train else (),
        verify=verify,
        progress=progress,
        processes=processes,
        time_limit=time_limit,
    )
