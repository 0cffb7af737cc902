"""`make_plan`: settings to options and a recommendation. `choose`: applies the recommendation."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from graftlm.config import (
    Embeddings,
    RunConfig,
    TrainConfig,
    contradictions,
    overrides,
    parse_size,
)
from graftlm.errors import ConfigError, ModelError, ResourceError, TargetError
from graftlm.planning.data_sheet import card_of
from graftlm.planning.fused_experts import FusedExperts, fused_experts
from graftlm.planning.planner import METHODS, Method, Option, Planner, Setting, as_setting
from graftlm.planning.recommend import Recommendation, recommend
from graftlm.planning.source import Source, source_of
from graftlm.planning.verify import Verified, verified
from graftlm.system.devices import say_once
from graftlm.system.placement import DEVICES, Placement, candidates, placement_for
from graftlm.training.resolve import needs_plan

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["Plan", "Verified", "choose", "make_plan", "row_lengths"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """A plan for a run.

    Attributes:
        model: the name from the settings.
        device: ``cpu`` or ``cuda``.
        limit: the memory limit in bytes.
        options: each method with and without checkpointing, and all other settings tried.
        recommendation: the recommended option.
        command: the `graftlm train` command that runs it.
        verified: the options that were run, if requested; also those whose run failed.
        experts: the fused experts of the model, if it has any.
    """

    model: str
    device: str
    limit: int
    options: tuple[Option, ...]
    recommendation: Recommendation
    command: str
    verified: tuple[Verified, ...] = ()
    experts: FusedExperts | None = None

    def to_json(self) -> dict[str, Any]:
        """The plan as `graftlm plan --json` prints it."""
        chosen = self.recommendation
        return {
            "model": self.model,
            "device": self.device,
            "memory_bytes": self.limit,
            "options": [dataclasses.asdict(option) for option in self.options],
            "recommended": {
                **dataclasses.asdict(chosen.option),
                "why": chosen.why,
                "missing_bytes": chosen.missing,
                "command": None if chosen.missing else self.command,
            },
            "verified": [entry.to_json() for entry in self.verified],
            "experts": None if self.experts is None else dataclasses.asdict(self.experts),
        }


def make_plan(
    config: RunConfig,
    *,
    architecture: PretrainedConfig | None = None,
    memory: str | int | None = None,
    device: str = "cpu",
    methods: Sequence[Method] = METHODS,
    lengths: Sequence[int] = (),
    verify: Literal["recommended", "all"] | None = None,
    progress: Callable[[str], None] = lambda text: None,
    only_recommended: bool = False,
    card: str | None = None,
) -> Plan:
    """Plan a run from its settings. Of the model only the config is read.

    Args:
        config: the run: model, adapters, batch, length. Its method is ignored.
        architecture: a transformers config, instead of the config of ``config.model.name``.
        memory: the limit, such as ``"6GB"``; by default the free memory.
        device: ``cpu`` or ``cuda``; the machine need not have it.
        methods: the methods that may be recommended.
        lengths: tokens of each row; by default every row is as long as ``max_length``.
        verify: really run the recommended option, or every option that fits, each in its own
            process, for at most `LIMIT_SECONDS`.
        progress: is called with a description of the current work.
        only_recommended: predict no more settings than the recommendation needs.
        card: the GPU to plan for, such as ``"A100"``: times are by its data sheet, and the default
            limit is its memory. By default the one that is here.

    Raises:
        ConfigError: a size, device or method is invalid, or the objective is not `next_token`.
        ModelError: the model cannot be found, or is not a causal language model.
    """
    problems = [f"method {m!r}: expected full, lora or qlora" for m in methods if m not in METHODS]
    if not methods:
        problems.append("no method to consider: expected some of full, lora, qlora")
    if device not in DEVICES:
        problems.append(f"device {device!r}: expected {' or '.join(DEVICES)}")
    elif verify and not Placement.on(device).exists:
        problems.append(f"a plan for {device} cannot be verified: torch finds none here")
    objective = config.train.objective
    if objective != (planned := TrainConfig().objective):
        problems.append(
            f"train.objective={objective}: a plan knows the memory of {planned} only. To train "
            "without a plan, leave out memory and say what is auto (method, "
            "train.gradient_checkpointing)"
        )
    if problems:
        raise ConfigError(problems)
    if not _leads_to(device, config.device):
        config = config.model_copy(update={"device": device})
    placement = Placement.on(device)
    sheet = card_of(card, placement)
    if memory is None and card is not None and sheet is not None:
        memory = int(sheet.memory)
    limit = placement.free_memory() if memory is None else parse_size(memory)
    source = Source(architecture) if architecture is not None else source_of(config)
    planner = Planner(source, config, limit, placement, lengths, sheet)
    embeddings = config.model.embeddings
    asks_to_recompute = config.train.gradient_checkpointing is True
    made: dict[Setting, Option | None] = {}

    def predict(setting: Setting) -> Option | None:
        """The option, or ``None`` if ``auto`` embeddings in 8 bits do not suit the model.

        A model that cannot recompute its activations does without, unless that was asked for.
        """
        if not asks_to_recompute and not source.can_recompute:
            setting = dataclasses.replace(setting, gradient_checkpointing=False)
        if setting not in made:
            said = f"{setting.method}, embeddings {setting.embeddings}, {setting.max_length} long"
            progress(said)
            try:
                made[setting] = planner.option(setting)
            except (ModelError, TargetError):
                if embeddings != "auto" or setting.embeddings == "keep":
                    raise
                made[setting] = None
        return made[setting]

    for method in () if only_recommended else methods:
        for checkpointing in (False, True):
            predict(as_setting(config, method, checkpointing))
    asked = as_setting(config, methods[0], asks_to_recompute)
    allowed: tuple[Embeddings, ...] = ("keep", "int8") if embeddings == "auto" else (embeddings,)
    offloads = config.model.offload == "auto" and not placement.runs_on_cpu
    at_once = planner.at_once(asked)
    chosen = recommend(asked, methods, limit, at_once, predict, allowed, offloads)
    options: dict[Any, Option] = {}
    for option in filter(None, made.values()):
        # A long row is not cut into parts, so that settings may differ and their batches not.
        key = option.method, option.gradient_checkpointing, option.embeddings, option.offload
        options.setdefault((*key, option.rows, option.length), option)
    to_verify = [chosen.option] if verify else []
    if verify == "all":
        to_verify += [option for option in options.values() if option != chosen.option]
    runs = [verified(config, o, planner.shape(o.setting), progress) for o in to_verify if o.fits]
    return Plan(
        config.model.name,
        device,
        limit,
        tuple(options.values()),
        chosen,
        command(config, chosen.option),
        tuple(runs),
        fused_experts(source.architecture, config),
    )


def choose(
    config: RunConfig, lengths: Sequence[int] = (), *, limit: int | None = None
) -> RunConfig:
    """Settings that fit in `config.memory`, or in the free memory.

    ``method: auto`` leaves all choices to the plan; ``gradient_checkpointing: auto`` leaves this
    one. The plan chooses the size of a micro-batch unless `micro_batch_tokens` is set, and the
    storage of the embeddings unless `embeddings` is set.

    Args:
        config: the request.
        lengths: tokens of each row; by default every row is as long as ``max_length``.
        limit: available bytes, if the request names no limit; by default the free memory.

    Raises:
        ResourceError: nothing fits; the message gives the missing memory and the cheapest change.
    """
    if problems := contradictions(config):
        raise ConfigError(problems)
    if config.device == "auto" and candidates():
        return _on_the_best_device(config, lengths, limit)
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
    )
    chosen = plan.recommendation
    if chosen.missing:
        raise ResourceError(f"{chosen.why}.")
    setting = chosen.option.setting
    checkpointing = config.train.gradient_checkpointing
    if checkpointing == "auto":
        checkpointing = setting.gradient_checkpointing
    asked = as_setting(config, setting.method, checkpointing)
    if asked.micro_batch_tokens is None:
        asked = dataclasses.replace(asked, micro_batch_tokens=setting.micro_batch_tokens)
    if config.model.embeddings == "auto":
        asked = dataclasses.replace(asked, embeddings=setting.embeddings)
    if config.model.offload == "auto":
        asked = dataclasses.replace(asked, offload=setting.offload)
    if not auto and setting != asked:
        raise ResourceError(f"as asked it does not fit: {chosen.why}. Run: {plan.command}")
    return setting.applied(config)


def _leads_to(device: str, request: str) -> bool:
    """Whether a run with this request goes to the planned kind of device."""
    if request == "auto":
        return Placement.on(device).runs_on_cpu and not candidates()
    return request.partition(":")[0] == device


def _on_the_best_device(config: RunConfig, lengths: Sequence[int], limit: int | None) -> RunConfig:
    """The request decided for the first accelerator that it fits on, else for the CPU."""
    for placement in candidates():
        there = config.model_copy(update={"device": str(placement.first)})
        try:
            chosen = choose(there, lengths)
        except ResourceError as error:
            say_once(f"device: not {placement.name}: {error}")
        else:
            say_once(f"device: {placement.name}, where the run fits by plan")
            return chosen
    here = config.model_copy(update={"device": "cpu"})
    return choose(here, lengths, limit=limit) if needs_plan(here) else here


def command(config: RunConfig, option: Option) -> str:
    """The `graftlm train` command for ``option``; parsed again, it gives the same settings.

    ``DATA`` stands for the rows if the settings name none.
    """
    settings, said = option.setting.applied(config), {"model.name", "method"}
    words = ["graftlm", "train", "--model", settings.model.name]
    if isinstance(settings.data.train, str):
        words += ["--data", settings.data.train or "DATA"]
        said.add("data.train")
    words += ["--method", option.method]
    return shlex.join(words + [w for text in overrides(settings, said) for w in ("--set", text)])


def row_lengths(config: RunConfig) -> list[int]:
    """Tokens of each training row."""
    from graftlm.data import load_examples
    from graftlm.models import load_tokenizer

    tokenizer = load_tokenizer(config.model.name, trust_remote_code=config.model.trust_remote_code)
    return [len(example) for example in load_examples(config.data.train, tokenizer, config.data)]
