"""The resolve step: from a request to a run.

A request (`RunConfig`) may say ``auto`` and leave settings unset. A run (`ResolvedConfig`) has a
value for each. Only this file decides these values:

    setting                       unset or auto becomes
    train.learning_rate           2e-4 for LoRA and QLoRA, 2e-5 for full fine-tuning; auto: that,
                                  until `rate_probe.py` has tried rates on the loaded model
    train.micro_batch_tokens      the best size for the device; 0 (whole batches) on a GPU
    train.steps                   as many as train.epochs takes over the rows
    model.dtype                   the checkpoint's, or float16 on a GPU without bfloat16; float32
                                  for full fine-tuning; of a model in hand, its own
    model.embeddings              keep, unless a plan has said int8
    model.offload                 none, unless a plan has said layers
    data.chat_template            the template in force: ``own``, or a built-in's name
    device                        the CPU without an accelerator, else a plan's to say
    distributed                   none in one process; else a plan's to say, ddp where none can
    method                        a plan's to say (`needs_plan`)
    train.gradient_checkpointing  a plan's to say

Planning is a package above this one, so the plan is passed in (`graftlm.planning.decide`). A
resumed run takes its unset settings from the settings that the run began with (`continued`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from graftlm.config import (
    Embeddings,
    Method,
    ModelConfig,
    ResolvedConfig,
    RunConfig,
    Settings,
    TrainConfig,
    validate,
)
from graftlm.data.chat import template_name
from graftlm.data.example import Example
from graftlm.models.load import load_config, pick_dtype
from graftlm.models.safetensors_file import Checkpoint
from graftlm.system.placement import Placement, candidates

__all__ = [
    "Facts",
    "Plan",
    "changed",
    "continued",
    "default_learning_rate",
    "dtype_in",
    "embeddings_of",
    "facts_of",
    "learning_rate_of",
    "needs_plan",
    "resolve",
    "steps_in",
    "steps_per_epoch",
    "with_method",
]

Plan = Callable[[RunConfig, Sequence[int]], RunConfig]
"""Takes a request and the tokens of each row; returns a request for which `needs_plan` is empty."""

_LEARNING_RATE = {"qlora": 2e-4, "lora": 2e-4, "full": 2e-5}
SettingsT = TypeVar("SettingsT", bound=Settings)


@dataclasses.dataclass(frozen=True)
class Facts:
    """The facts besides the request that a run depends on.

    Attributes:
        sequences: training sequences in one pass over the data, after packing if it is on.
        dtype: the requested type of the weights, or that of the checkpoint.
        chat_template: name of the template in use.
        positions_at_once: the device's best size of a micro-batch; ``None``: whole batches.
        in_hand: whether the model was loaded by the caller, so that ``dtype`` is its type.
        device: the device of the run.
        processes: how many train the model together.
    """

    sequences: int
    dtype: str
    chat_template: str
    positions_at_once: int | None
    in_hand: bool = False
    device: str = "cpu"
    processes: int = 1


def facts_of(
    request: RunConfig,
    sequences: Sequence[Example],
    tokenizer: Any,
    dtype: str,
    placement: Placement,
    *,
    in_hand: bool = False,
) -> Facts:
    """The facts of a run on this machine with these rows."""
    return Facts(
        sequences=len(sequences),
        dtype=dtype,
        chat_template=template_name(tokenizer, request.data.chat_template),
        positions_at_once=placement.positions_at_once(),
        in_hand=in_hand,
        device=str(placement.first),
        processes=placement.world_size,
    )


def dtype_in(folder: Path, config: ModelConfig, placement: Placement) -> str:
    """The type of the weights that will be loaded from ``folder`` to this device."""
    architecture = load_config(folder, config.trust_remote_code)
    dtype = pick_dtype(config.dtype, architecture, Checkpoint(folder), placement)
    return str(dtype).removeprefix("torch.")


def needs_plan(request: RunConfig, processes: int = 1) -> list[str]:
    """The settings that only a plan can decide or check, for a run in ``processes``."""
    plannable = request.train.objective == TrainConfig().objective
    on_auto = request.device == "auto" and plannable
    open_settings = {
        "device is auto, and there is an accelerator": on_auto and bool(candidates()),
        f"distributed is auto, in {processes} processes": (
            processes > 1 and request.distributed == "auto" and plannable
        ),
        "method is auto": request.method == "auto",
        "train.gradient_checkpointing is auto": request.train.gradient_checkpointing == "auto",
        f"memory is {request.memory}": request.memory != "unlimited",
    }
    return [name for name, is_open in open_settings.items() if is_open]


def resolve(request: RunConfig, facts: Facts) -> ResolvedConfig:
    """The run for ``request``; a plan must already have set what `needs_plan` lists."""
    if request.method == "auto" or request.train.gradient_checkpointing == "auto":
        raise ValueError(f"a plan must come first: {', '.join(needs_plan(request))}")
    closed, train = with_method(request, request.method), request.train
    tree = closed.model_dump() | {"device": facts.device}
    if request.distributed == "auto":
        tree["distributed"] = "ddp" if facts.processes > 1 else "none"
    loads_float32 = request.method == "full" and not facts.in_hand
    tree["model"]["dtype"] = "float32" if loads_float32 else facts.dtype
    tree["data"]["chat_template"] = facts.chat_template
    tree["train"]["learning_rate"] = learning_rate_of(request, request.method)
    if request.model.offload == "auto":
        tree["model"]["offload"] = "none"
    if train.micro_batch_tokens is None:
        tree["train"]["micro_batch_tokens"] = facts.positions_at_once or 0
    if train.steps is None:
        tree["train"]["steps"] = steps_in(
            facts.sequences, train.batch_size, train.gradient_accumulation_steps, train.epochs
        )
    return validate(ResolvedConfig, tree)


def with_method(request: RunConfig, method: Method) -> RunConfig:
    """``request`` with another method; ``embeddings: auto`` becomes ``keep`` without a plan.

    Full fine-tuning trains the embeddings, so it keeps them, and it holds all weights in float32,
    whatever the request says.
    """
    chosen = request.model_copy(update={"method": method})
    closed = changed(chosen, "model", embeddings=embeddings_of(chosen))
    return changed(closed, "model", dtype="auto") if method == "full" else closed


def embeddings_of(request: RunConfig) -> Embeddings:
    """How the embeddings are stored: in 8 bits only if the request or a plan says so."""
    int8 = request.model.embeddings == "int8" and request.method != "full"
    return "int8" if int8 else "keep"


def learning_rate_of(request: RunConfig, method: Method) -> float:
    """The peak learning rate of ``request`` under ``method``."""
    asked = request.train.learning_rate
    return default_learning_rate(method) if asked is None or asked == "auto" else asked


def default_learning_rate(method: Method) -> float:
    """The peak learning rate of ``method`` where none is set; with `auto`, the grid's middle."""
    return _LEARNING_RATE[method]


def steps_in(
    sequences: int, batch_size: int, gradient_accumulation_steps: int, epochs: float
) -> int:
    """Optimiser steps in ``epochs`` passes over ``sequences``; at least one.

    The end of a pass ends a step, which then has fewer batches than the others.
    """
    batches = math.ceil(sequences / batch_size)
    whole, rest = divmod(epochs, 1)
    steps = int(whole) * steps_per_epoch(batches, gradient_accumulation_steps)
    return max(1, steps + math.ceil(batches * rest / gradient_accumulation_steps))


def steps_per_epoch(batches: int, gradient_accumulation_steps: int) -> int:
    """Optimiser steps in one pass over ``batches`` batches."""
    return math.ceil(batches / gradient_accumulation_steps)


def continued(request: RunConfig, begun: RunConfig) -> RunConfig:
    """``request`` with its unset settings taken from the run as it began.

    A plan chooses the length of rows only under ``method: auto``.

    Args:
        request: the settings of this call.
        begun: from `recorded_config`.
    """
    if request.method == "auto":
        request = request.model_copy(update={"method": begun.method})
        request = changed(request, "data", max_length=begun.data.max_length)
    if request.device == "auto":
        request = request.model_copy(update={"device": begun.device})
    if request.distributed == begun.distributed == "none":  # it began in one process
        request = request.model_copy(update={"distributed": "auto"})
    for section, name, open_value in (
        ("model", "dtype", "auto"),
        ("model", "embeddings", "auto"),
        ("model", "offload", "auto"),
        ("data", "chat_template", "auto"),
        ("train", "gradient_checkpointing", "auto"),
        ("train", "micro_batch_tokens", None),
        ("train", "learning_rate", None),
        ("train", "learning_rate", "auto"),
    ):
        if getattr(getattr(request, section), name) == open_value:
            request = changed(request, section, **{name: getattr(getattr(begun, section), name)})
    if request.lora.probe_ranks and not begun.lora.probe_ranks:
        request = request.model_copy(update={"lora": begun.lora})  # with the ranks it found
    if request.train.steps is None and request.train.epochs == begun.train.epochs:
        request = changed(request, "train", steps=begun.train.steps)
    return request


def changed(request: RunConfig, section: str, **values: Any) -> RunConfig:
    """``request`` with other values of one section, not validated again."""
    part: Settings = getattr(request, section)
    return request.model_copy(update={section: part.model_copy(update=values)})
