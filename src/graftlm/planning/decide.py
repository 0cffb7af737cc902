"""What a request leaves to a plan, decided in a process of its own; and `run`, which does so.

Planning leaves behind a traced model and the libraries it took. In the process of the run they
would count in the memory that the plan is to keep small.
"""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from graftlm import errors
from graftlm.config import RunConfig, validate
from graftlm.errors import GraftLMError, TrainingError
from graftlm.planning.plan import choose
from graftlm.system import available_memory
from graftlm.training import RunResult
from graftlm.training import run as run_decided

__all__ = ["decide", "run"]


def run(config: RunConfig, *, resume: bool = False, progress: bool = True) -> RunResult:
    """Do one whole training run as ``config`` asks for it, in the folder ``config.out``.

    What is ``auto``, and whether the run fits in ``config.memory``, is a plan's to say: the same as
    `graftlm train` does with the same settings.

    Args:
        config: the request; see `graftlm.RunConfig`.
        resume: go on with the run in ``config.out``; what the request leaves open is as it began.
        progress: say on stderr what the plan decided, and draw the progress line there.

    Raises:
        ConfigError: a required setting is missing, or settings contradict each other.
        ResourceError: it does not fit in memory or on the disk.
        GraftLMError: whatever stops the model, the data or the training; see `graftlm.errors`.
    """
    # Asked before anything is loaded: what this process takes is part of what the run takes.
    plan = functools.partial(decide, limit=available_memory(), say=progress)
    return run_decided(config, resume=resume, progress=progress, plan=plan)


def decide(
    request: RunConfig, lengths: Sequence[int], *, limit: int, say: bool = False
) -> RunConfig:
    """The request with what only a plan decides decided, so that it fits.

    Args:
        request: the request.
        lengths: tokens of each row.
        limit: bytes there are, where the request names no limit.
        say: print the outcome on stderr.

    Raises:
        ResourceError: nothing fits; names what is missing and the cheapest change.
        TrainingError: the planning process was ended.
    """
    asked = {
        "config": request.model_dump(mode="json"),
        "lengths": [int(length) for length in lengths],
        "limit": limit,
    }
    done = subprocess.run(
        [sys.executable, "-c", "from graftlm.planning.decide import answer; answer()"],
        input=json.dumps(asked),
        stdout=subprocess.PIPE,
        text=True,
    )
    chosen = validate(RunConfig, _answer_of(done.returncode, done.stdout))
    if say:
        print(_outcome(chosen), file=sys.stderr)
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
        kind = getattr(errors, answer["kind"])
        raise kind(answer["problems"] or answer["error"])
    decided: dict[str, Any] = answer["config"]
    return decided


def _outcome(chosen: RunConfig) -> str:
    tokens = chosen.train.micro_batch_tokens
    at_once = f", {tokens} at once" if tokens else ""
    checkpointed = ", gradient checkpointing" if chosen.train.gradient_checkpointing else ""
    held = ", embeddings in 8 bits" if chosen.model.embeddings == "int8" else ""
    return (
        f"planned: {chosen.method}, batches of {chosen.train.batch_size} rows, each of at most "
        f"{chosen.data.max_length} tokens{at_once}{checkpointed}{held}"
    )


def answer() -> None:
    """In the process: the request on stdin, as JSON, and what was decided on stdout."""
    asked = json.load(sys.stdin)
    try:
        request = validate(RunConfig, asked["config"])
        chosen = choose(request, asked["lengths"], limit=asked["limit"])
    except GraftLMError as error:
        refusal = {
            "error": str(error),
            "kind": type(error).__name__,
            "problems": getattr(error, "problems", None),
        }
        print(json.dumps(refusal))
    else:
        print(json.dumps({"config": chosen.model_dump(mode="json")}))
