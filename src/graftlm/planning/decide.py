"""Decides the open settings of a request by a plan: `run` and `graftlm train` with ``auto``.

`choose` plans in this process, `decide` in a separate one. Planning leaves a traced model and its
libraries in memory. In the run's own process they would count towards the memory that the plan has
to keep small.
"""

from __future__ import annotations

import functools
import json
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from graftlm.config import RunConfig, contradictions, validate
from graftlm.errors import (
    ConfigError,
    GraftLMError,
    ResourceError,
    TrainingError,
    error_in,
    record_of,
)
from graftlm.planning.plan import make_plan
from graftlm.system import available_memory
from graftlm.system.child import ask, end_with_parent
from graftlm.system.devices import say_once
from graftlm.system.heartbeat import heartbeat
from graftlm.system.placement import DEVICES, candidates, placement_for
from graftlm.system.processes import joined_processes
from graftlm.training import RunResult
from graftlm.training import run as run_decided
from graftlm.training.hooks import Callback
from graftlm.training.resolve import needs_plan

__all__ = ["choose", "decide", "run"]


def run(
    config: RunConfig,
    *,
    resume: bool = False,
    progress: bool = True,
    hooks: Sequence[Callback] = (),
) -> RunResult:
    """`graftlm.training.run` with a plan, which decides the ``auto`` settings.

    The plan checks that the run fits in ``config.memory``, and ``progress`` prints what it decides.
    `graftlm train` does the same with the same settings.

    Raises:
        ResourceError: it does not fit in memory or on the disk.
    """
    # Measure free memory before anything is loaded: the run includes the memory of this process.
    plan = functools.partial(decide, limit=available_memory(), say=progress)
    return run_decided(config, resume=resume, progress=progress, plan=plan, hooks=hooks)


def decide(
    request: RunConfig, lengths: Sequence[int], *, limit: int, say: bool = False
) -> RunConfig:
    """The request with its ``auto`` settings decided by a plan, so that it fits.

    Args:
        request: the request.
        lengths: tokens of each row.
        limit: available bytes of this machine, if the request names no limit.
        say: print the outcome on stderr.

    Raises:
        ResourceError: nothing fits; the message gives the missing memory and the cheapest change.
        TrainingError: the planning process was ended.
    """
    here = joined_processes()
    asked = {
        "config": request.model_dump(mode="json"),
        "lengths": [int(length) for length in lengths],
        "limit": limit // here.local_world_size,
        "processes": here.world_size,
        "say": say,
    }
    script = "from graftlm.planning.decide import answer; answer()"
    code, said = ask([sys.executable, "-c", script], json.dumps(asked))
    answered = _answer_of(code, said)
    chosen = validate(RunConfig, answered["config"])
    if say:
        tokens, train = chosen.train.micro_batch_tokens, chosen.train
        at_once = f", {tokens} at once" if tokens else ""
        checkpointed = ", gradient checkpointing" if train.gradient_checkpointing else ""
        held = ", embeddings in 8 bits" if chosen.model.embeddings == "int8" else ""
        held += ", layers in host memory" if chosen.model.offload == "layers" else ""
        print(
            f"planned: {chosen.method}, batches of {train.batch_size} rows, each of at most "
            f"{chosen.data.max_length} tokens{at_once}{checkpointed}{held}",
            file=sys.stderr,
        )
        if here.world_size > 1:
            print(
                f"planned: distributed={chosen.distributed} in {here.world_size} processes: "
                f"{answered['why']} a process",
                file=sys.stderr,
            )
    return chosen


def _answer_of(code: int, said: str) -> dict[str, Any]:
    advice = "Say what was left open (method, train.gradient_checkpointing) and leave out memory."
    if code < 0:
        name = signal.Signals(-code).name
        memory = ", most likely because memory ran out" if name == "SIGKILL" else ""
        raise TrainingError(f"the planning process was ended by {name}{memory}. {advice}")
    try:
        answer: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
    except (IndexError, ValueError):
        raise TrainingError(
            f"the planning process failed with exit code {code}; its own words are above. {advice}"
        ) from None
    if "error" in answer:
        raise error_in(answer)
    return answer


def answer() -> None:
    """The planning process: reads the request from stdin as JSON, prints the decision on stdout."""
    asked = json.loads(sys.stdin.readline())
    end_with_parent()
    try:
        request = validate(RunConfig, asked["config"])
        with heartbeat(_say if asked["say"] else lambda text: None) as progress:
            chosen, why = choose(
                request,
                asked["lengths"],
                limit=asked["limit"],
                processes=asked["processes"],
                progress=progress,
            )
        said = {"config": chosen.model_dump(mode="json"), "why": why}
    except GraftLMError as error:
        said = record_of(error)
    print(json.dumps(said))


def _say(text: str) -> None:
    print(f"planning: {text}", file=sys.stderr, flush=True)


def choose(
    config: RunConfig,
    lengths: Sequence[int] = (),
    *,
    limit: int | None = None,
    processes: int = 1,
    progress: Callable[[str], None] = lambda text: None,
) -> tuple[RunConfig, str]:
    """The request with nothing left open that a plan decides, and why it is so.

    ``device: auto`` takes the first accelerator that the run fits on, else the CPU.
    ``method: auto`` leaves all choices to the plan; ``gradient_checkpointing: auto`` leaves this
    one, and ``distributed: auto`` DDP or FSDP2. The plan chooses the size of a micro-batch unless
    `micro_batch_tokens` is set, and the storage of the embeddings unless `embeddings` is set.

    Args:
        config: the request.
        lengths: tokens of each row; by default every row is as long as ``max_length``.
        limit: bytes available to each process, if the request names no limit; by default the free
            memory.
        processes: how many train together.
        progress: is called with a description of the current work.

    Raises:
        ResourceError: nothing fits; the message gives the missing memory and the cheapest change.
    """
    if problems := contradictions(config):
        raise ConfigError(problems)
    accelerators = candidates() if config.device == "auto" else []
    for placement in accelerators:
        there = config.model_copy(update={"device": str(placement.first)})
        try:
            chosen = choose(there, lengths, processes=processes, progress=progress)
        except ResourceError as error:
            say_once(f"device: not {placement.name}: {error}")
        else:
            say_once(f"device: {placement.name}, where the run fits by plan")
            return chosen
    if accelerators:
        config = config.model_copy(update={"device": "cpu"})
        if not needs_plan(config, processes):
            return config, ""
    placement = placement_for(config.device)
    available = limit if placement.runs_on_cpu else placement.free_memory()
    plan = make_plan(
        config,
        device=DEVICES[not placement.runs_on_cpu],
        memory=available if config.memory == "unlimited" else config.memory,
        methods=("lora", "qlora") if config.method == "auto" else (config.method,),
        lengths=lengths,
        only_recommended=True,
        processes=processes,
        progress=progress,
    )
    found = plan.recommendation
    if found.missing:
        raise ResourceError(f"{found.why}.")
    option, train = found.option, config.train
    # A plan changes embeddings, offloading and engine only where they are left to it.
    as_asked = (
        train.gradient_checkpointing in ("auto", option.gradient_checkpointing)
        and train.micro_batch_tokens in (None, option.micro_batch_tokens)
        and config.data.max_length == option.max_length
    )
    if config.method != "auto" and not as_asked:
        raise ResourceError(f"as asked it does not fit: {found.why}. Run: {plan.command}")
    return option.applied(config), found.why
