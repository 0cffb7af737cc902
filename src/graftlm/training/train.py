"""From settings to a trained adapter: load, adapt, read the data, fit.

The command line calls `run`. `train` does the same for a model that is already loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from graftlm.adapters import count_parameters, lora_config, lora_modules
from graftlm.config import (
    DataConfig,
    LoRAConfig,
    ModelConfig,
    ResolvedConfig,
    RunConfig,
    TrainConfig,
    contradictions,
    most_bytes,
    require_complete,
)
from graftlm.data.new_tokens import add_tokens
from graftlm.data.pack import lengths_of
from graftlm.distributed.group import joined
from graftlm.distributed.refusals import require_supported
from graftlm.distributed.streams import seed_of_rank
from graftlm.errors import ConfigError
from graftlm.exporting.rules import require_exportable
from graftlm.models import StoredTokenizer, load_tokenizer
from graftlm.models import resolve as resolve_model
from graftlm.models.capabilities import require_left_to_right, require_packable
from graftlm.system import release_freed_memory, return_freed_memory
from graftlm.system.placement import placement_for, placement_of
from graftlm.training.adapted_model import adapt, adapted_model
from graftlm.training.checkpoint import latest
from graftlm.training.compilation import compile_layers
from graftlm.training.data_checks import (
    check_rows,
    model_config_in,
    record_of_rows,
    trained_tokenizer,
)
from graftlm.training.device_memory import memory_explained
from graftlm.training.disk import require_space
from graftlm.training.hooks import Callback
from graftlm.training.hooks.tracking import require_tracker
from graftlm.training.lock import locked
from graftlm.training.loop import fit
from graftlm.training.model_in_hand import method_of, model_config_of
from graftlm.training.new_tokens import longer_config, with_rows_of
from graftlm.training.objective import Objective, objective_named
from graftlm.training.origin import named, origin_of
from graftlm.training.rank_probe import with_probed_ranks
from graftlm.training.rate_probe import with_probed_rate
from graftlm.training.recompute import recompute_activations, require_card
from graftlm.training.registered import require_registered
from graftlm.training.resolve import (
    Plan,
    continued,
    dtype_in,
    facts_of,
    needs_plan,
    resolve,
)
from graftlm.training.rows import packed, read_rows, require_examples
from graftlm.training.run import Run, RunResult
from graftlm.training.run_folder import (
    begin_run,
    check_folder,
    how_to_go_on,
    run_in,
)
from graftlm.training.savable import require_savable
from graftlm.training.too_few import say_if_too_few

__all__ = ["run", "train"]


def run(
    config: RunConfig,
    *,
    resume: bool = False,
    progress: bool = True,
    plan: Plan | None = None,
    hooks: Sequence[Callback] = (),
) -> RunResult:
    """Do one whole training run with the settings ``config`` in the folder ``config.out``.

    `graftlm.run` adds a plan, so it accepts every request.

    Args:
        config: the request.
        resume: continue the run in ``config.out``; unset settings keep the values it began with.
        progress: draw the progress line on stderr.
        plan: sets the values that only a plan can decide.
        hooks: are called at fixed points of the run, see `graftlm.training.hooks.hook`.

    From this call on, the process returns freed memory (`system.return_freed_memory`).

    Raises:
        ConfigError: a required setting is missing, or a plan is needed and none was given.
        GraftLMError: the model, the data or the training failed; see `graftlm.errors`.
    """
    require_complete(config)
    require_registered(config)
    return_freed_memory()
    with joined() as group, locked(Path(config.out).absolute(), group.is_main) as out:
        begun = group.from_main(lambda: run_in(out)) if resume else None
        request = config if begun is None else continued(config, begun)
        undecided = needs_plan(request, group.processes.world_size) if begun is None else []
        if undecided and plan is None:
            raise ConfigError([f"{what}: `graftlm train` plans it; say it" for what in undecided])
        if request.device != "auto":
            placement_for(request.device)  # refuse it before any work
        trusted = config.model.trust_remote_code
        most = most_bytes(request)
        base = resolve_model(config.model.name, trust_remote_code=trusted, most_bytes=most).path
        require_supported(request, group.processes)
        if begun is None:
            group.from_main(lambda: check_folder(out))
        require_exportable(request)
        # Read the rows first: the tokenizer can then be freed before the model is loaded.
        tokenizer = load_tokenizer(config.model.name, trust_remote_code=trusted)
        new_ids = add_tokens(tokenizer, request.data.new_tokens)
        request = with_rows_of(request, new_ids)
        with group.main_first():  # it fills the cache of large files
            rows, held = read_rows(tokenizer, request.data, request.data.train, request.data.eval)
        if undecided and plan is not None:
            lengths, asked, decide = [int(n) for n in lengths_of(rows)], request, plan
            request = group.from_main(lambda: decide(asked, lengths))
            if (data := request.data).max_length != asked.data.max_length:
                rows, held = read_rows(tokenizer, data, data.train, data.eval)
        sequences, placement = packed(rows, request.data), placement_for(request.device)
        require_card(request, placement)
        dtype = dtype_in(base, request.model, placement)
        settings = resolve(request, facts_of(request, sequences, tokenizer, dtype, placement))
        objective = objective_named(settings.train.objective)(settings.train)
        examples = require_examples(objective, rows), objective.examples_in(held)
        model_config = longer_config(model_config_in(base), request.lora)
        check_rows(*examples, tokenizer, request.data, model_config, base)
        origin = group.from_main(lambda: origin_of(request, base, rows, held))
        record = record_of_rows(rows, request.data)
        saved = trained_tokenizer(tokenizer, rows, request.data)
        goes_on = group.from_main(lambda: how_to_go_on(out, begun, settings, origin))
        with StoredTokenizer(saved) as stored:
            del tokenizer, saved
            release_freed_memory()
            with memory_explained(settings, placement):
                last = group.from_main(
                    lambda: latest(out / "checkpoints") if goes_on != "anew" else None
                )
                model = adapted_model(settings, examples[0], last)
                task = _task(model, stored, settings, sequences, held, objective)
                if settings.lora.probe_ranks:
                    task = with_probed_ranks(task, _adapting(task, examples[0]))
                if request.train.learning_rate == "auto":
                    task = with_probed_rate(task)
                extended, final = goes_on == "extended", task.config
                group.from_main(lambda: begin_run(out, final, origin, record, extended=extended))
                return fit(task, resume=goes_on != "anew", progress=progress, hooks=hooks)


def train(
    model: PreTrainedModel,
    tokenizer: Any,
    data: str | Path | Sequence[Any],
    config: TrainConfig | None = None,
    *,
    out: str | Path,
    eval_data: str | Path | Sequence[Any] | None = None,
    data_config: DataConfig | None = None,
    resume: bool = False,
    progress: bool = True,
    hooks: Sequence[Callback] = (),
) -> RunResult:
    """Train a loaded model: its adapters, or without adapters all parameters that need a gradient.

    Args:
        model: from `graftlm.load_model`, with `graftlm.add_lora` applied unless all weights train.
        tokenizer: the model's.
        data: a file of rows, tokenised examples, or other rows that the objective accepts.
        config: how to train.
        out: the run folder.
        eval_data: the held-out rows.
        data_config: how rows become tokens.
        resume: continue the run in ``out``.
        progress: draw the progress line on stderr.
        hooks: are called at fixed points of the run, see `graftlm.training.hooks.hook`.
    """
    request = RunConfig(
        method=method_of(model),
        out=str(out),
        device=str(placement_of(model).first),
        model=model_config_of(model),
        data=named(data_config or DataConfig(), data, eval_data),
        lora=lora_config(model) if lora_modules(model) else LoRAConfig(),
        train=config or TrainConfig(),
    )
    # The model's settings describe the model in hand.
    if problems := contradictions(request.model_copy(update={"model": ModelConfig()})):
        raise ConfigError(problems)
    if request.data.new_tokens:
        raise ConfigError(
            "data.new_tokens: of a model in hand, call tokenizer.add_tokens(…) and pass the ids as "
            "lora.trainable_token_indices to add_lora"
        )
    objective_named(request.train.objective)
    require_exportable(request, model)
    with joined() as group, locked(Path(out).absolute(), group.is_main) as folder:
        begun = group.from_main(lambda: run_in(folder)) if resume else None
        require_supported(request, group.processes)
        if begun is None:
            group.from_main(lambda: check_folder(folder))
        else:
            request = continued(request, begun)
        if open_settings := needs_plan(request):
            raise ConfigError([f"{what}: for a model in hand, say it" for what in open_settings])
        rows, held = read_rows(tokenizer, request.data, data, eval_data)
        if request.train.eval_steps and not held:
            raise ConfigError("train.eval_steps needs rows to measure on: pass them as eval_data")
        dtype, sequences = request.model.dtype, packed(rows, request.data)
        facts = facts_of(request, sequences, tokenizer, dtype, placement_of(model), in_hand=True)
        settings = resolve(request, facts)
        objective = objective_named(settings.train.objective)(settings.train)
        examples = require_examples(objective, rows), objective.examples_in(held)
        check_rows(*examples, tokenizer, request.data, model.config.to_dict())
        origin = origin_of(request, None, rows, held)
        record = record_of_rows(rows, request.data)
        saved = trained_tokenizer(tokenizer, rows, request.data)
        goes_on = group.from_main(lambda: how_to_go_on(folder, begun, settings, origin))
        task = _task(model, saved, settings, sequences, held, objective)
        if request.train.learning_rate == "auto":
            task = with_probed_rate(task)
        extended, final = goes_on == "extended", task.config
        group.from_main(lambda: begin_run(folder, final, origin, record, extended=extended))
        task.placement.seed(seed_of_rank(settings.train.seed, task.placement.rank))
        with memory_explained(settings, task.placement):
            return fit(task, resume=goes_on != "anew", progress=progress, hooks=hooks)


def _adapting(task: Run, rows: Sequence[Any]) -> Callable[[LoRAConfig], None]:
    """Puts adapters with other settings on the model of a run, as a run with them begins."""

    def put(lora: LoRAConfig) -> None:
        task.placement.seed(task.config.train.seed)
        adapt(task.model, task.config.model_copy(update={"lora": lora}), rows, say=False)

    return put


def _task(
    model: PreTrainedModel,
    tokenizer: Any,
    config: ResolvedConfig,
    examples: Sequence[Any],
    eval_examples: Sequence[Any],
    objective: Objective,
) -> Run:
    """The run, ready to start. Refuses a run whose result could not be written."""
    require_left_to_right(model)
    if config.data.packing:
        require_packable(model)
    if config.train.gradient_checkpointing:
        recompute_activations(model, offload=config.train.offload_checkpoints)
    if config.train.compile:
        compile_layers(model)
    task = Run(
        model=model,
        tokenizer=tokenizer,
        examples=examples,
        eval_examples=eval_examples,
        config=config,
        objective=objective,
        out=Path(config.out).absolute(),
        total_parameters=count_parameters(model)[1],
    )
    require_space(task)
    require_savable(task)
    say_if_too_few(config)
    require_tracker(config.train.tracking)
    return task
