"""Checkpoints: all state that a run needs to resume exactly.

    checkpoints/step-N/
        adapter_config.json     LoRA and QLoRA: a PEFT adapter, usable as it is
        adapter_model.safetensors
        weights.safetensors     full fine-tuning: every trained parameter
        optimizer.safetensors   AdamW's moments and step count, by name
        rng.safetensors         the state of torch's random generators, of every rank
        state.json              counters and the best evaluation

The learning rate and the order of the data are pure functions of (settings, step), so neither is
stored. Tensors keep their type, so restoring is exact to the last bit. A checkpoint is always
written between two optimiser steps. A stop during gradient accumulation drops the partial gradients
and restores the random state from the start of the step, so the resumed run repeats the step.

The files are the same in any number of processes: the main one writes them, all read them. A rank
that a checkpoint does not know draws from a stream of its own, derived from seed, step and rank.

A process may be killed at any moment. If there was a complete checkpoint before, there is one
afterwards: `save` removes an old checkpoint only after the new one is complete, and `latest`
restores a checkpoint that a kill left in a hidden folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from graftlm.adapters import lora_modules
from graftlm.adapters.peft_format import load_adapter, save_adapter
from graftlm.distributed.streams import seed_of_rank
from graftlm.errors import ArtifactError
from graftlm.files import atomic_folder, recover, remove_folder, write_json
from graftlm.system.placement import placement_of

__all__ = [
    "ROW_ORDER",
    "TrainState",
    "latest",
    "of_all_ranks",
    "prune",
    "reopen",
    "restore",
    "save",
    "save_counters",
]

ROW_ORDER = 2
_HIDDEN = re.compile(r"\.(step-\d+)\.")


@dataclasses.dataclass
class TrainState:
    """The counters of a run: all of its changing state except tensors."""

    step: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    seconds: float = 0.0
    train_loss: float | None = None
    eval_loss_before: float | None = None
    best_eval_loss: float | None = None
    best_step: int | None = None
    stale_evaluations: int = 0
    peak_memory_bytes: int = 0
    finished: bool = False
    row_order: int = ROW_ORDER
    """The version of the order of the rows; see `Run.require_same_order`."""


def save(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: TrainState,
    rng: dict[str, Tensor],
    base_name: str,
) -> None:
    """Write a checkpoint into ``folder``, atomically."""
    with atomic_folder(folder, replace=True) as temporary:
        if lora_modules(model):
            save_adapter(model, temporary, base_name=base_name)
        else:
            weights = {name: p.detach() for name, p in _trainable(model).items()}
            safetensors.torch.save_file(weights, temporary / "weights.safetensors")
        safetensors.torch.save_file(
            _optimizer_tensors(model, optimizer), temporary / "optimizer.safetensors"
        )
        safetensors.torch.save_file(rng, temporary / "rng.safetensors")
        write_json(temporary / "state.json", dataclasses.asdict(state))


def of_all_ranks(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The random states of all ranks under one key each: ``cpu`` of rank 0, ``1/cpu`` of rank 1."""
    return {
        f"{rank}/{key}" if rank else key: state
        for rank, own in enumerate(states)
        for key, state in own.items()
    }


def save_counters(folder: Path, state: TrainState) -> None:
    """Write ``state`` into the existing checkpoint of the same step; its tensors do not change."""
    write_json(folder / "state.json", dataclasses.asdict(state))


def reopen(folder: Path) -> None:
    """Record that the finished run of this checkpoint takes more steps.

    Raises:
        ArtifactError: the counters are missing or corrupt.
    """
    with _errors_named(folder):
        state = _state_in(folder)
    save_counters(folder, dataclasses.replace(state, finished=False, stale_evaluations=0))


def restore(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, seed: int = 0
) -> TrainState:
    """Load the state in ``folder`` into the model, the optimiser and the random generators.

    Args:
        folder: the checkpoint.
        model: the model, as when it was written.
        optimizer: the optimiser of its trained parameters.
        seed: the run's, for a rank whose random state is not in the checkpoint.

    Raises:
        ArtifactError: a file is missing or corrupt, or belongs to another model.
    """
    adapters = lora_modules(model)
    with _errors_named(folder):
        state = _state_in(folder)
        moments = safetensors.torch.load_file(folder / "optimizer.safetensors")
        rng = safetensors.torch.load_file(folder / "rng.safetensors")
        if not adapters:
            _copy_exactly(
                _trainable(model), safetensors.torch.load_file(folder / "weights.safetensors")
            )
    if adapters:
        # The one that `save` wrote; the model may have others.
        load_adapter(model, folder, name=next(iter(adapters.values())).name)
    _load_optimizer_tensors(model, optimizer, moments)
    placement = placement_of(model)
    if placement.rank == 0:
        placement.set_rng_state(rng)
        return state
    own = {
        key.partition("/")[2]: value
        for key, value in rng.items()
        if key.startswith(f"{placement.rank}/")
    }
    if own:
        placement.set_rng_state(own)
    else:
        placement.seed(seed_of_rank(seed, placement.rank, state.step))
    return state


def latest(folder: Path) -> Path | None:
    """The checkpoint with the highest step in ``folder``, or ``None``.

    It first repairs what a killed process left unfinished. Call it only while no other process
    writes to the folder.
    """
    for step in {
        match[1] for path in folder.glob(".step-*") if (match := _HIDDEN.match(path.name))
    }:
        recover(folder / step)
    steps = _steps_in(folder)
    return steps[max(steps)] if steps else None


def prune(folder: Path, keep: int, best_step: int | None) -> None:
    """Delete all but the newest ``keep`` checkpoints and the best one."""
    steps = _steps_in(folder)
    for step in sorted(steps)[:-keep]:
        if step != best_step:
            remove_folder(steps[step])


@contextlib.contextmanager
def _errors_named(folder: Path) -> Iterator[None]:
    """Turn the errors of reading the checkpoint ``folder`` into an `ArtifactError`."""
    try:
        yield
    except (OSError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise ArtifactError(
            f"the checkpoint {folder} cannot be read: {error}. "
            "Remove it to resume from the one before, or start again without --resume."
        ) from error


def _state_in(folder: Path) -> TrainState:
    recorded = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return TrainState(**({"row_order": 1} | recorded))


def _steps_in(folder: Path) -> dict[int, Path]:
    """The checkpoints in ``folder`` by their step."""
    return {
        int(match[1]): path
        for path in folder.glob("step-*")
        if (match := re.fullmatch(r"step-(\d+)", path.name))
    }


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _copy_exactly(parameters: dict[str, nn.Parameter], stored: dict[str, Tensor]) -> None:
    if parameters.keys() != stored.keys():
        odd = sorted(parameters.keys() ^ stored.keys())
        raise ArtifactError(
            f"the checkpoint is of another model: {odd[0]!r} is only in one of them"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(stored[name])


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value
        for name, parameter in _trainable(model).items()
        for key, value in optimizer.state[parameter].items()
    }


def _load_optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, stored: dict[str, Tensor]
) -> None:
    parameters = _trainable(model)
    for full_name, value in stored.items():
        name, _, key = full_name.rpartition("/")
        if name not in parameters:
            raise ArtifactError(f"the checkpoint is of another model: it trains {name!r}")
        # Also the number of steps: the fused optimiser wants it beside the moments.
        optimizer.state[parameters[name]][key] = value.to(parameters[name].device)
