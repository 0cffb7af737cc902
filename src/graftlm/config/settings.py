"""Every setting of graftlm, declared once: what a user may write.

The YAML file, ``--set section.name=value`` and ``docs/settings.md`` are generated from these
models. They are frozen: settings never change under a run.

A `RunConfig` is a request: it may say ``auto``, and leave out what depends on the method, the
machine or the rows. `graftlm.config.run.ResolvedConfig` is the run that a request becomes.
"""

from __future__ import annotations

import typing
from typing import Annotated, Literal

import pydantic

from graftlm.config.adapter_settings import LoRAConfig
from graftlm.config.values import Names, Place, Rate, Settings, Strength, Text

__all__ = [
    "DataConfig",
    "Embeddings",
    "Method",
    "ModelConfig",
    "RunConfig",
    "TrainConfig",
]

Embeddings = Literal["keep", "int8"]
Method = Literal["qlora", "lora", "full", "auto"]
Tracking = Literal["none", "tensorboard", "wandb", "mlflow", "trackio"]
Replacement = Literal["norms", "gated_units", "rotary", "output_layer", "attention"]


class ModelConfig(Settings):
    """Which base model, and how it is held in memory."""

    name: Place = ""
    """A folder, a Hub id (`owner/name`, or `owner/name@revision`), a `.gguf` file, or a built-in
    name such as `gemma-3-270m`."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the unquantised weights; `auto` keeps the checkpoint's, or takes `float16` instead of
    `bfloat16` on a GPU that does not multiply it."""
    weight_format: Text = "nf4"
    """The format that `qlora` holds the frozen weights in: `nf4` (4 bits), `int8` (a scale a row),
    or one that `graftlm.extend.register_format` has made known."""
    block_size: Literal[32, 64, 128, 256, 512, 1024, 2048, 4096] = 64
    """Weights that share one scale, in a weight format that has blocks."""
    double_quant: bool = True
    """Store the scales themselves in 8 bits, in a weight format that can (`nf4`)."""
    embeddings: Literal["auto", "keep", "int8"] = "auto"
    """`int8` stores the embedding table and the output head in 8 bits, a scale a row: half of what
    16 bits take. They must be frozen: not with `full`, and no adapters on them. `auto` keeps their
    type, unless a plan (`memory`, or another `auto`) finds that 8 bits make the run fit."""
    offload: Literal["auto", "none", "layers"] = "auto"
    """`layers` keeps the layers' frozen weights in host memory and copies each to the card while
    the one before it computes, for a base that is larger than the card. It needs
    `train.gradient_checkpointing`. `auto` does so only if a plan finds that nothing else fits."""
    replacements: Annotated[tuple[Replacement, ...], pydantic.Strict(False)] = typing.get_args(
        Replacement
    )
    """Modules of transformers that quicker ones stand for, where these compute the same; `[]` keeps
    the model as transformers has it."""
    trust_remote_code: bool = False
    """Run Python code that the model folder brings along. Only for sources you trust."""


class DataConfig(Settings):
    """Which rows to learn from, and how they become tokens."""

    train: Place | dict[Place, Strength] = ""
    """The rows to train on: a file, folder, glob, `-`, Hub data set, or `{source: weight, ...}`."""
    eval: Place = ""
    """The rows to measure on; never trained on. Empty: none."""
    eval_fraction: float = pydantic.Field(0.0, ge=0, lt=1)
    """Without `eval`: hold this share of `train` out, chosen by content, always the same rows."""
    new_tokens: Names = ()
    """Tokens to add to the vocabulary, such as `["<tool>", "</tool>"]`: their rows of the embedding
    table and of the output head are trained beside the adapters, all others stay."""
    columns: dict[Text, Text] = pydantic.Field({})
    """Column names: `{prompt: question, completion: answer}` reads `question` as the prompt."""
    ignore: Names = ()
    """Columns to leave out knowingly, where graftlm would refuse rows because such a column
    changes what they mean: `[label, weight]`."""
    format: Literal["plain", "chat"] = "plain"
    """Rows of a prompt and a completion: `plain` text, or a question and an answer as turns of
    the `chat` template. The adapter is later asked in the same form."""
    separator: Text = "\n"
    """What stands between prompt and completion in plain text; `""` for nothing."""
    max_length: int = pydantic.Field(512, ge=2, le=10_000_000)
    """Longest row in tokens."""
    truncation: Literal["drop", "left", "right", "split"] = "drop"
    """A longer row is dropped, cut from the left or the right, or split into windows."""
    loss_on: Literal["completion", "last", "all"] = "completion"
    """What is learned: every answer, only the last answer of a chat, or every token."""
    chat_template: Text = "auto"
    """`auto` (the tokenizer's own, else by family), `own`, or a built-in: `chatml`, `plain`, ..."""
    packing: bool = False
    """Put several rows into one sequence of `max_length`; each attends only to itself."""
    group_by_length: bool = True
    """Batch rows of similar length: less padding where rows are padded, as on a GPU."""
    workers: int = pydantic.Field(0, ge=0, le=1024)
    """Processes that prepare large data, each with its own tokenizer; 0: this one, on all cores."""


class TrainConfig(Settings):
    """How the adapters (or, with `full`, all weights) are trained."""

    objective: str = "next_token"
    """What is trained for: `next_token`, or a name given to `register_objective`."""
    steps: int | None = pydantic.Field(None, ge=1, le=1_000_000_000)
    """Optimiser steps. Unset: as many as `epochs` takes."""
    epochs: float = pydantic.Field(1.0, gt=0, le=1_000_000)
    """Passes over the data. Not used where `steps` is set."""
    batch_size: int = pydantic.Field(8, ge=1, le=1_000_000)
    """Rows in one batch, over all processes."""
    gradient_accumulation_steps: int = pydantic.Field(1, ge=1, le=1_000_000)
    """Batches whose gradients are added before one optimiser step."""
    micro_batch_tokens: int | None = pydantic.Field(None, ge=0, le=1_000_000_000)
    """A batch is computed in parts of at most this many positions, a row at least: less memory,
    the same update. `0`: whole batches. Unset: 512 on a CPU, where more are no faster, and `0` on a
    GPU."""
    learning_rate: Rate | Literal["auto"] | None = None
    """Peak learning rate. Unset: 2e-4 for LoRA and QLoRA, 2e-5 for full fine-tuning. `auto`: up to
    five short runs of 12 steps choose it on held-out rows, from the same start."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_ratio: float = pydantic.Field(0.03, ge=0, le=1)
    """Share of the steps in which the learning rate rises from zero."""
    weight_decay: float = pydantic.Field(0.0, ge=0, le=1000)
    """Decoupled weight decay of AdamW."""
    adam_beta1: float = pydantic.Field(0.9, ge=0, lt=1)
    """AdamW: decay of the first moment."""
    adam_beta2: float = pydantic.Field(0.999, ge=0, lt=1)
    """AdamW: decay of the second moment."""
    adam_epsilon: float = pydantic.Field(1e-8, gt=0, le=1000)
    """AdamW: added to the denominator."""
    max_grad_norm: float = pydantic.Field(1.0, gt=0, le=1e30)
    """Gradients are scaled down to this global norm."""
    loss_tolerance: float = pydantic.Field(1e-6, ge=0, lt=1)
    """Probabilities up to this may be left out of the output layer's gradient; 0 is exact. On a CPU
    the default changes the gradient by 0.1 to 0.2 %, and saves a third to a half of its time."""
    seed: int = pydantic.Field(0, ge=0, lt=2**63)
    """Seed of adapters, data order and dropout."""
    eval_steps: int = pydantic.Field(0, ge=0, le=1_000_000_000)
    """Measure the held-out loss every so many steps; `0` measures before and after only."""
    samples: int = pydantic.Field(0, ge=0, le=1000)
    """Also answer so many held-out rows at each evaluation, into `samples.jsonl`."""
    save_steps: int = pydantic.Field(0, ge=0, le=1_000_000_000)
    """Write a checkpoint every so many steps; `0` writes one when stopped and at the end."""
    keep_checkpoints: int = pydantic.Field(2, ge=1, le=1_000_000_000)
    """Older checkpoints are deleted; the best one is kept besides."""
    early_stopping_patience: int = pydantic.Field(0, ge=0, le=1_000_000_000)
    """Stop after so many evaluations without a better held-out loss; `0` never stops early."""
    gradient_checkpointing: bool | Literal["auto"] = False
    """Recompute each layer's activations in the backward pass: less memory, more time. `auto`:
    where the run would not fit in `memory` (or what is free) without."""
    offload_checkpoints: bool = False
    """With `gradient_checkpointing` on an accelerator: keep the inputs of the layers in host memory
    until the backward pass. It pays for long rows, where they are most of the memory."""
    compile: bool = False
    """Compile each layer with `torch.compile`, which starts fewer operations: it may pay for a
    small model on a GPU, and costs minutes at the start."""
    export_to: Names = ()
    """Forms that `graftlm export` shall make of the result, such as `[gguf-adapter, vllm]`. What a
    form does not take is refused before training."""
    tracking: Tracking = "none"
    """Also send the metrics to a tracker: `tensorboard` (files in the run folder), `wandb`,
    `mlflow` or `trackio`. Where to, these packages read from their own environment variables."""


class RunConfig(Settings):
    """A request for one training run."""

    method: Method = "qlora"
    """`qlora`: adapters over a 4-bit base; `lora`: over a 16/32-bit base; `full`: all weights;
    `auto`: LoRA where it fits in memory, else QLoRA, as `graftlm plan` says."""
    device: Text = "auto"
    """`cpu`, `cuda`, `cuda:1`, `xpu` or `mps`; `auto`: an accelerator with enough free memory by
    plan, else the CPU."""
    distributed: Literal["auto", "ddp", "fsdp", "none"] = "auto"
    """How several processes share the work: `ddp`, each holds the whole model; `fsdp`, each holds a
    share of the frozen weights; `none` refuses several; `auto`: `ddp` where a replica fits by plan,
    else `fsdp`. In one process it has no effect."""
    memory: Text = "unlimited"
    """Do not start what would need more than this, such as `2GB`, the one conversion of a `.gguf`
    file included; `unlimited` does not ask. What is `auto` is decided so that it fits, under
    `unlimited` into what is free."""
    out: Place = "runs/latest"
    """The run folder."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    lora: LoRAConfig = LoRAConfig()
    train: TrainConfig = TrainConfig()
