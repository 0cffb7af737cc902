"""`make_plan`: settings to options and a recommendation. `choose`: applies the recommendation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from graftlm.config import Embeddings, RunConfig, TrainConfig, contradictions
from graftlm.errors import ConfigError, ModelError, ResourceError, TargetError
from graftlm.planning.command import command
from graftlm.planning.planner import METHODS, Method, Option, Planner, Setting, as_setting
from graftlm.planning.recommend import Recommendation, recommend
from graftlm.planning.sizes import parse_size
from graftlm.planning.verify import Verified, verified
from graftlm.system.placement import DEVICES, Placement

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
        command: the `graftlm train` command that runs it; ``None`` for a device that `train` does
            not use.
        verified: the options that were run, if requested; also those whose run failed.
    """

    model: str
    device: str
    limit: int
    options: tuple[Option, ...]
    recommendation: Recommendation
    command: str | None
    verified: tuple[Verified, ...] = ()

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
            "verified": [
                {**dataclasses.asdict(entry.option), **entry.to_json()} for entry in self.verified
            ],
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

    Raises:
        ConfigError: a size, device or method is invalid, or the objective is not `next_token`.
        ModelError: the model cannot be found, or is not a causal language model.
    """
    problems = [f"method {m!r}: expected full, lora or qlora" for m in methods if m not in METHODS]
    if not methods:
        problems.append("no method to consider: expected some of full, lora, qlora")
    if device not in DEVICES:
        problems.append(f"device {device!r}: expected {' or '.join(DEVICES)}")
    elif verify and not Placement.on(device).runs_on_cpu:
        problems.append(f"a plan for {device} cannot be verified: training runs on the CPU")
    objective = config.train.objective
    if objective != (planned := TrainConfig().objective):
        problems.append(
            f"train.objective={objective}: a plan knows the memory of {planned} only. To train "
            "without a plan, leave out memory and say what is auto (method, "
            "train.gradient_checkpointing)"
        )
    if problems:
        raise ConfigError(problems)
    limit = _limit(memory, device)
    folder = None
    if architecture is None:
        architecture, folder = _architecture(config)
    dtype = _dtype(config, architecture, folder)
    planner = Planner(architecture, config, dtype, folder, limit, device, lengths)
    made: dict[Setting, Option] = {}

    def predict(setting: Setting) -> Option:
        if setting not in made:
            progress(
                f"{setting.method}, embeddings {setting.embeddings}, {setting.max_length} long"
            )
            made[setting] = planner.option(setting)
        return made[setting]

    impossible: set[Embeddings] = set()

    def predict_if_possible(setting: Setting) -> Option | None:
        """The option, or ``None`` if ``auto`` embeddings in 8 bits do not suit the model."""
        if setting.embeddings in impossible:
            return None
        try:
            return predict(setting)
        except (ModelError, TargetError):
            if config.model.embeddings != "auto" or setting.embeddings == "keep":
                raise
            impossible.add(setting.embeddings)
            return None

    for method in methods:
        for checkpointing in (False, True):
            predict(as_setting(config, method, checkpointing))
    asked = as_setting(config, methods[0], config.train.gradient_checkpointing is True)
    chosen = recommend(
        asked, methods, limit, planner.at_once(asked), predict_if_possible, _embeddings(config)
    )
    options = list(_different(made.values()))
    to_verify = [chosen.option] if verify else []
    if verify == "all":
        to_verify += [option for option in options if option != chosen.option]
    runs = [verified(config, o, planner.shape(o.setting), progress) for o in to_verify if o.fits]
    return Plan(
        config.model.name,
        device,
        limit,
        tuple(options),
        chosen,
        command(config, chosen.option) if Placement.on(device).runs_on_cpu else None,
        tuple(runs),
    )


def _embeddings(config: RunConfig) -> tuple[Embeddings, ...]:
    """The storage of embeddings that the settings allow, best first."""
    said = config.model.embeddings
    return ("keep", "int8") if said == "auto" else (said,)


def _different(options: Iterable[Option]) -> Iterator[Option]:
    """The options without duplicates, which arise because a long row is not cut into parts."""
    seen = set()
    for option in options:
        shape = option.rows, option.length
        key = option.method, option.gradient_checkpointing, option.embeddings, shape
        if key not in seen:
            seen.add(key)
            yield option


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
    auto = config.method == "auto"
    plan = make_plan(
        config,
        memory=limit if config.memory == "unlimited" else config.memory,
        methods=("lora", "qlora") if auto else (config.method,),  # type: ignore[arg-type]
        lengths=lengths,
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
    if not auto and setting != asked:
        raise ResourceError(f"as asked it does not fit: {chosen.why}. Run: {plan.command}")
    return setting.applied(config)


def _limit(memory: str | int | None, device: str) -> int:
    if memory is not None:
        return parse_size(memory)
    return Placement.on(device).free_memory()


def _architecture(config: RunConfig) -> tuple[PretrainedConfig, Path]:
    from graftlm.models import resolve
    from graftlm.models.load import load_config
    from graftlm.models.prequantized import take_quantization

    folder = resolve(config.model.name, trust_remote_code=config.model.trust_remote_code).path
    architecture = load_config(folder, config.model.trust_remote_code)
    take_quantization(architecture, config.model.name)  # refuse the models that training refuses
    return architecture, folder


def _dtype(config: RunConfig, architecture: PretrainedConfig, folder: Path | None) -> Any:
    import torch

    from graftlm.models.load import pick_dtype
    from graftlm.models.safetensors_file import Checkpoint

    try:
        checkpoint: Any = Checkpoint(folder) if folder else None
    except ModelError:
        checkpoint = None
    if checkpoint is None:
        name = config.model.dtype
        kind = architecture.get_text_config().dtype if name == "auto" else getattr(torch, name)
        return kind or torch.bfloat16
    return pick_dtype(config.model.dtype, architecture, checkpoint)


def row_lengths(config: RunConfig) -> list[int]:
    """Tokens of each training row."""
    from graftlm.data import load_examples
    from graftlm.models import load_tokenizer

    tokenizer = load_tokenizer(config.model.name, trust_remote_code=config.model.trust_remote_code)
    return [len(example) for example in load_examples(config.data.train, tokenizer, config.data)]
