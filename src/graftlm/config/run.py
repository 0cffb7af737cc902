"""The settings of a run: none is ``auto``, none is unset.

A value, never a null, switches a feature off: ``data.eval: ''`` (no held-out rows),
``train.eval_steps: 0``, ``train.save_steps: 0``, ``train.early_stopping_patience: 0``,
``train.micro_batch_tokens: 0`` (whole batches), ``memory: unlimited``.

`graftlm.training.resolve` makes a run from a request. ``config.yaml`` in a run folder is a run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pydantic

from graftlm.config.checking import validate
from graftlm.config.reading import read_tree
from graftlm.config.settings import DataConfig, ModelConfig, RunConfig, TrainConfig
from graftlm.config.values import Text
from graftlm.errors import ArtifactError, ConfigError

__all__ = ["ResolvedConfig", "RunData", "RunModel", "RunTrain", "recorded_config"]


def _named(template: str) -> str:
    if template == "auto":
        raise ValueError("must name a template")
    return template


def _chosen(device: str) -> str:
    if device == "auto":
        raise ValueError("must name a device")
    return device


class RunModel(ModelConfig):
    """How a run stores its base model."""

    dtype: Literal["float32", "bfloat16", "float16"]
    embeddings: Literal["keep", "int8"]
    offload: Literal["none", "layers"] = "none"


class RunData(DataConfig):
    """How the rows of a run became tokens."""

    chat_template: Annotated[Text, pydantic.AfterValidator(_named)]


class RunTrain(TrainConfig):
    """How a run trains."""

    steps: int = pydantic.Field(ge=1, le=1_000_000_000)
    micro_batch_tokens: int = pydantic.Field(ge=0, le=1_000_000_000)
    learning_rate: float = pydantic.Field(gt=0, le=1000)
    gradient_checkpointing: bool


class ResolvedConfig(RunConfig):
    """A run: the content of `config.yaml` in a run folder.

    An older graftlm trained on the CPU and recorded no device, and in one process.
    """

    distributed: Literal["ddp", "fsdp", "none"] = "none"
    device: Annotated[Text, pydantic.AfterValidator(_chosen)] = "cpu"
    method: Literal["qlora", "lora", "full"]
    model: RunModel
    data: RunData
    train: RunTrain


def recorded_config(path: Path) -> RunConfig:
    """Read the ``config.yaml`` of a run folder.

    Returns:
        A `ResolvedConfig`. An older graftlm recorded nulls for defaults. For its runs this returns
        a `RunConfig` with the values that it used: it kept the embeddings under ``auto``.

    Raises:
        ArtifactError: the file cannot be read, or is not the record of a run.
    """
    try:
        tree = read_tree(path)
        request = validate(RunConfig, tree)
    except ConfigError as error:
        raise ArtifactError(
            f"the settings of the run in {path.parent} cannot be read:\n{error}\n"
            "Mend the file, or copy what you need of the folder to one without a config.yaml."
        ) from error
    try:
        return validate(ResolvedConfig, tree)
    except ConfigError:
        return _of_an_older_version(request, path)


def _of_an_older_version(request: RunConfig, path: Path) -> RunConfig:
    open_settings = [
        name
        for name, value in (
            ("method", request.method),
            ("train.gradient_checkpointing", request.train.gradient_checkpointing),
        )
        if value == "auto"
    ]
    if open_settings:
        raise ArtifactError(
            f"{path}: {' and '.join(open_settings)} is auto, so the file does not say what was "
            "done. graftlm never writes this. Put in the value the run had."
        )
    model = request.model.model_dump()
    used = {"embeddings": "keep", "offload": "none"}
    closed = {name: value for name, value in used.items() if model[name] == "auto"}
    return request.model_copy(update={"model": request.model.model_copy(update=closed)})
