"""`make_plan`: settings to options and a recommendation."""

from __future__ import annotations

import dataclasses
import itertools
import math
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
from graftlm.errors import ConfigError, near_matches
from graftlm.planning.deadline import ends_after
from graftlm.planning.fused_experts import FusedExperts, fused_experts
from graftlm.planning.option import METHODS, Distributed, Method, Option, as_setting
from graftlm.planning.planner import Planner
from graftlm.planning.recommend import Recommendation, ladder, recommend
from graftlm.planning.source import Source, source_of
from graftlm.planning.verify import Verified, verified
from graftlm.system.cards import CARDS, card_named
from graftlm.system.placement import DEVICES, Placement, candidates
from graftlm.training.recompute import require_card

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["Plan", "Verified", "make_plan", "row_lengths"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """A plan for a run.

    Attributes:
        model: the name from the settings.
        device: ``cpu`` or ``cuda``.
        limit: the memory limit in bytes; of several processes, that of each.
        processes: how many train together. Memory is that of one of them.
        options: each method with and without checkpointing, and all other settings tried.
        recommendation: the recommended option.
        command: the `graftlm train` command that runs it.
        verified: the options that were run, if requested; also those whose run failed.
        experts: the fused experts of the model, if it has any.
        left_out: why training refuses a method with these settings.
    """

    model: str
    device: str
    limit: int
    options: tuple[Option, ...]
    recommendation: Recommendation
    command: str
    verified: tuple[Verified, ...] = ()
    experts: FusedExperts | None = None
    processes: int = 1
    left_out: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The plan as `graftlm plan --json` prints it."""
        chosen = self.recommendation
        return {
            "model": self.model,
            "device": self.device,
            "memory_bytes": self.limit,
            "processes": self.processes,
            "options": [dataclasses.asdict(option) for option in self.options],
            "recommended": {
                **dataclasses.asdict(chosen.option),
                "why": chosen.why,
                "missing_bytes": chosen.missing,
                "command": None if chosen.missing else self.command,
            },
            "verified": [entry.to_json() for entry in self.verified],
            "experts": None if self.experts is None else dataclasses.asdict(self.experts),
            "left_out": list(self.left_out),
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
    processes: int = 1,
    time_limit: float = math.inf,
) -> Plan:
    """Plan a run from its settings. Of the model only the config is read.

    The arguments are those of `graftlm.plan`, and besides: ``architecture`` is a transformers
    config instead of that of ``config.model.name``; ``lengths`` are the tokens of each row, by
    default ``max_length`` each; ``only_recommended`` predicts no more settings than the
    recommendation needs. The method of ``config`` is ignored.

    Several processes have a device each, or share the cores of one machine. With `distributed:
    auto`, DDP is recommended where a replica fits, else FSDP2.

    Raises:
        ConfigError: a size, device or method is invalid, training refuses the settings with each
            of the methods, or the objective is not `next_token`.
        ResourceError: the time limit is over.
        ModelError: the model cannot be found, or is not a causal language model.
    """
    problems = [f"method {m!r}: expected full, lora or qlora" for m in methods if m not in METHODS]
    if not methods:
        problems.append("no method to consider: expected some of full, lora, qlora")
    if device not in DEVICES:
        problems.append(f"device {device!r}: expected {' or '.join(DEVICES)}")
    elif verify and not Placement.on(device).exists:
        problems.append(f"a plan for {device} cannot be verified: torch finds none here")
    elif card is not None and Placement.on(device).runs_on_cpu:
        problems.append(f"card {card!r}: a plan for {device} has no use for it; leave one out")
    if verify and processes > 1:
        problems.append(
            "a trial run is one process: verify a plan for one, or train for some steps"
        )
    sheet = None if card is None else card_named(card)
    if card is not None and sheet is None:
        names = [one.name for one in CARDS]
        said = f"expected one of {', '.join(names)}{near_matches(card, names)}"
        problems.append(f"card {card!r}: {said}")
    objective = config.train.objective
    if objective != (planned := TrainConfig().objective):
        problems.append(
            f"train.objective={objective}: a plan knows the memory of {planned} only. To train "
            "without a plan, leave out memory and say what is auto (method, "
            "train.gradient_checkpointing)"
        )
    if not time_limit > 0:
        problems.append(f"a time limit of {time_limit:g} s: expected more than 0")
    if problems:
        raise ConfigError(problems)
    if not _leads_to(device, config.device):
        config = config.model_copy(update={"device": device})
    placement = Placement.on(device)
    require_card(config, placement)
    refused = {m: contradictions(as_setting(config, m, True).applied(config)) for m in methods}
    left_out = tuple(dict.fromkeys(itertools.chain(*refused.values())))
    methods = [method for method in methods if not refused[method]]
    if not methods:
        raise ConfigError(left_out)
    if card is None and placement.exists:
        sheet = card_named(placement.name)
    elif memory is None and sheet is not None:
        memory = int(sheet.memory)
    limit = placement.free_memory() if memory is None else parse_size(memory)
    if memory is None and placement.runs_on_cpu:
        limit //= processes
    source = Source(architecture) if architecture is not None else source_of(config)
    bounded = ends_after(time_limit, progress)
    planner = Planner(source, config, limit, placement, lengths, sheet, processes, bounded)
    engines: tuple[Distributed, ...] = ("none",)
    if processes > 1:
        named = config.distributed
        engines = (named,) if named in ("ddp", "fsdp") else ("ddp", "fsdp")
    for method in () if only_recommended else methods:
        for checkpointing in (False, True):
            setting = as_setting(config, method, checkpointing)
            for engine in engines:
                planner.option(dataclasses.replace(setting, distributed=engine))
    asked = as_setting(config, methods[0], config.train.gradient_checkpointing is True)
    allowed: tuple[Embeddings, ...] = ("keep", "int8")
    if config.model.embeddings != "auto":
        allowed = (config.model.embeddings,)
    offloaded = dataclasses.replace(asked, method=methods[-1], offload="layers").applied(config)
    offloads = config.model.offload == "auto" and not placement.runs_on_cpu
    offloads = offloads and not contradictions(offloaded)
    settings = ladder(asked, methods, planner.at_once(asked), allowed, offloads, engines)
    chosen = recommend(settings, limit, planner.option)
    options: dict[Any, Option] = {}
    for option in filter(None, planner.options.values()):
        # A long row is not cut into parts, so that settings may differ and their batches not.
        key = option.method, option.gradient_checkpointing, option.embeddings, option.offload
        options.setdefault((*key, option.distributed, option.rows, option.length), option)
    to_verify = [chosen.option] if verify else []
    if verify == "all":
        to_verify += [option for option in options.values() if option != chosen.option]
    runs = [verified(config, o, planner.shape(o), progress) for o in to_verify if o.fits]
    return Plan(
        config.model.name,
        device,
        limit,
        tuple(options.values()),
        chosen,
        command(config, chosen.option, processes),
        tuple(runs),
        fused_experts(source.architecture, config),
        processes,
        left_out,
    )


def _leads_to(device: str, request: str) -> bool:
    """Whether a run with this request goes to the planned kind of device."""
    if request == "auto":
        return Placement.on(device).runs_on_cpu and not candidates()
    return request.partition(":")[0] == device


def command(config: RunConfig, option: Option, processes: int = 1) -> str:
    """The `graftlm train` command for ``option``; parsed again, it gives the same settings.

    ``DATA`` stands for the rows if the settings name none.
    """
    settings, said = option.applied(config), {"model.name", "method"}
    words = ["graftlm", "train", "--model", settings.model.name]
    if isinstance(settings.data.train, str):
        words += ["--data", settings.data.train or "DATA"]
        said.add("data.train")
    words += ["--method", option.method]
    words += ["--processes", str(processes)] if processes > 1 else []
    return shlex.join(words + [w for text in overrides(settings, said) for w in ("--set", text)])


def row_lengths(config: RunConfig) -> list[int]:
    """Tokens of each training row."""
    from graftlm.data import load_examples
    from graftlm.models import load_tokenizer

    tokenizer = load_tokenizer(config.model.name, trust_remote_code=config.model.trust_remote_code)
    return [len(example) for example in load_examples(config.data.train, tokenizer, config.data)]
