"""Settings that contradict each other, have no effect, or are missing."""

from __future__ import annotations

from graftlm.config.checking import shown
from graftlm.config.settings import RunConfig, TrainConfig
from graftlm.errors import ConfigError

__all__ = ["contradictions", "require_complete"]


def contradictions(config: RunConfig) -> list[str]:
    """A problem for each setting that has no effect or contradicts another."""
    data, train, problems = config.data, config.train, []
    if config.method == "full" and config.model.embeddings == "int8":
        problems.append(
            "method=full trains the embeddings, which model.embeddings=int8 freezes: use keep"
        )
    if config.method == "full" and config.model.dtype in ("bfloat16", "float16"):
        problems.append(
            f"method=full holds its weights in float32: model.dtype={config.model.dtype} would not "
            "be used. Leave it out"
        )
    problems += _of_merge_aware(config) + _of_offload(config) + _of_sharding(config)
    if config.lora.init == "loftq" and config.method in ("lora", "full"):
        problems.append(
            f"lora.init=loftq starts from the error of 4-bit weights, and method={config.method} "
            "has none: use qlora"
        )
    if config.lora.freeze_a and config.lora.target_parameters:
        problems.append(
            "lora.freeze_a=true has no form for experts and routers: leave lora.target_parameters "
            "out, or train both factors"
        )
    problems += _of_trained_parts(config) + _of_rank_probe(config)
    if data.eval and data.eval_fraction:
        problems.append(
            "data.eval names the rows to measure on, so data.eval_fraction would not be used: "
            "leave one of them out"
        )
    if train.early_stopping_patience and not train.eval_steps:
        problems.append(
            f"train.early_stopping_patience={train.early_stopping_patience} counts evaluations, "
            "and there are none: set train.eval_steps"
        )
    if train.samples and train.objective != TrainConfig().objective:
        problems.append(
            f"train.samples={train.samples} answers rows of a prompt and an answer, which "
            f"train.objective={train.objective} need not have: leave it out"
        )
    return problems


def _of_trained_parts(config: RunConfig) -> list[str]:
    """A problem for each setting that cannot be had with what trains beside the adapters."""
    lora, rows = config.lora, config.lora.trainable_token_indices
    beside = {
        "lora.modules_to_save": bool(lora.modules_to_save),
        "lora.trainable_token_indices": bool(rows),
        "lora.bias": lora.bias != "none",
        "lora.lora_bias": lora.lora_bias,
    }
    wrong = {
        "distributed=fsdp, which shards frozen weights: use ddp": config.distributed == "fsdp",
        "model.offload=layers": config.model.offload == "layers",
        f"lora.merge_aware={shown(lora.merge_aware)}": bool(lora.merge_aware),
    }
    named = ", ".join(name for name, is_set in beside.items() if is_set)
    problems = [
        f"{named} cannot be used with {what}" for what, is_wrong in wrong.items() if is_wrong
    ] * bool(named)
    if config.data.new_tokens and isinstance(rows, dict):
        problems.append(
            "data.new_tokens adds its rows to lora.trainable_token_indices, which names modules: "
            "give it a list of ids"
        )
    if lora.lora_bias and lora.init != "default":
        problems.append(
            f"lora.lora_bias=true goes with lora.init=default, as in PEFT, not {lora.init}"
        )
    return problems


def _of_rank_probe(config: RunConfig) -> list[str]:
    """A problem for each setting that a probe of ranks cannot be had with."""
    lora = config.lora
    wrong = {
        "method=full, which has no ranks": config.method == "full",
        "lora.init=eva, which moves ranks itself": lora.init == "eva",
        "lora.init=orthogonal, which needs even ranks": lora.init == "orthogonal",
        "lora.rank_pattern or lora.alpha_pattern, which say them": bool(
            lora.rank_pattern or lora.alpha_pattern
        ),
        "lora.target_parameters: experts keep one rank": bool(lora.target_parameters),
        f"lora.merge_aware={shown(lora.merge_aware)}": bool(lora.merge_aware),
        "model.offload=layers": config.model.offload == "layers",
    }
    said = "lora.rank=auto (lora.probe_ranks=true) cannot be used with"
    return [f"{said} {what}" for what, is_wrong in wrong.items() if is_wrong and lora.probe_ranks]


def _of_sharding(config: RunConfig) -> list[str]:
    """A problem for each setting that rules out sharded weights."""
    wrong = {
        "method=full, which freezes none: use ddp": config.method == "full",
        "model.offload=layers, which keeps them in host memory": config.model.offload == "layers",
        "train.samples, which asks the whole model in one process": config.train.samples > 0,
        "lora.merge_aware, which reads whole weights": bool(config.lora.merge_aware),
        "train.compile, which reads the layers as they are": config.train.compile,
    }
    said = "distributed=fsdp shards frozen weights. It cannot be used with"
    return [f"{said} {what}" for what, is_wrong in wrong.items() if is_wrong] * (
        config.distributed == "fsdp"
    )


def _of_merge_aware(config: RunConfig) -> list[str]:
    """A problem for each setting that rules out training through the merge."""
    lora, stored = config.lora, config.model.weight_format
    wrong = {
        f"method={config.method}: use qlora": config.method != "qlora",
        f"model.weight_format={shown(stored)}: use the same format": lora.merge_aware != stored,
        f"lora.dropout={lora.dropout}: a merged weight has none, use 0": lora.dropout > 0,
        f"lora.variant={shown(lora.variant)}: use lora": lora.variant != "lora",
        "lora.init=loftq, which starts from the error that this training removes": (
            lora.init == "loftq"
        ),
        "lora.target_parameters: experts have no such form": bool(lora.target_parameters),
    }
    said = f"lora.merge_aware={shown(lora.merge_aware)} cannot be used with"
    return [f"{said} {what}" for what, is_wrong in wrong.items() if is_wrong and lora.merge_aware]


def _of_offload(config: RunConfig) -> list[str]:
    """A problem for each setting that rules out keeping layers or their inputs in host memory."""
    train, problems = config.train, []
    if config.model.offload == "layers":
        wrong = {
            "method=full: it trains the layers, use qlora or lora": config.method == "full",
            f"lora.merge_aware={config.lora.merge_aware}": bool(config.lora.merge_aware),
            "train.gradient_checkpointing=false: use true": train.gradient_checkpointing is False,
            "train.compile=true: its weights change their place": train.compile,
        }
        problems += [
            f"model.offload=layers cannot be used with {what}"
            for what, is_wrong in wrong.items()
            if is_wrong
        ]
    if train.offload_checkpoints and train.gradient_checkpointing is False:
        problems.append(
            "train.offload_checkpoints=true keeps what train.gradient_checkpointing=true saves: "
            "set both, or neither"
        )
    return problems


def without_rows(config: RunConfig) -> list[str]:
    """A problem for each setting that needs held-out rows, if there are none."""
    if config.data.eval or config.data.eval_fraction:
        return []
    return [
        f"train.{name}={value} needs rows to measure on: name them by --eval-data, or hold some "
        "out with --set data.eval_fraction=0.1"
        for name, value in (
            ("eval_steps", config.train.eval_steps),
            ("samples", config.train.samples),
        )
        if value
    ]


def require_complete(config: RunConfig) -> None:
    """Refuse a request that lacks a setting without a default, or contradicts itself.

    Raises:
        ConfigError: all problems at once.
    """
    problems = [
        f"{name} is not set: {what}"
        for name, value, what in (
            ("model.name", config.model.name, "which model? Pass --model, e.g. gemma-3-270m"),
            ("data.train", config.data.train, "which rows? Pass --data FILE"),
        )
        if not value
    ]
    if problems := problems + contradictions(config) + without_rows(config):
        raise ConfigError(problems)
