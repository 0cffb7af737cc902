"""The model of a run: the base as the settings hold it, with new adapters."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from graftlm.adapters import add_lora
from graftlm.adapters.merge_aware import apply_merge_aware, original_weights
from graftlm.adapters.peft_config import read_config
from graftlm.config import LoRAConfig, RunConfig
from graftlm.data.example import Example
from graftlm.distributed.loading import shares_of
from graftlm.distributed.streams import seed_of_rank
from graftlm.models import load_weights
from graftlm.models.host_layers import layers_on_host
from graftlm.system.placement import placement_for, placement_of
from graftlm.training.new_tokens import longer_vocabulary
from graftlm.training.resolve import embeddings_of

__all__ = ["adapt", "adapted_model"]


def adapted_model(
    config: RunConfig, rows: Sequence[Example] = (), checkpoint: Path | None = None
) -> PreTrainedModel:
    """The base model loaded as ``config`` says, with new adapters. Sets the seed.

    Args:
        config: the settings of the run.
        rows: the training rows, which `lora.init` eva reads.
        checkpoint: the one that the run will go on from; the values of the adapters are then left
            to it, and so are the ranks that EVA has set.
    """
    shares = shares_of(config)
    model = load_weights(
        config.model.name,
        quantize=config.model.weight_format if config.method == "qlora" else None,
        dtype="float32" if config.method == "full" else config.model.dtype,
        block_size=config.model.block_size,
        double_quant=config.model.double_quant,
        embeddings=embeddings_of(config),
        replacements=config.model.replacements,
        trust_remote_code=config.model.trust_remote_code,
        device="cpu" if config.model.offload == "layers" else config.device,
        shares=shares,
    )
    if shares is not None:
        from graftlm.distributed.sharded import shard_frozen  # imports torch.distributed

        shard_frozen(model.requires_grad_(False), parts=shares.parts)
    # Seed before the adapters are initialised, so that the seed determines the run.
    placement = placement_of(model)
    placement.seed(config.train.seed)
    if config.method == "full":
        longer_vocabulary(model, config.lora)
        model.requires_grad_(True)
    else:
        adapt(model, config, rows, checkpoint)
    if config.model.offload == "layers":
        layers_on_host(model, placement_for(config.device).first)
    if placement.rank:  # the same adapters in every process, and another stream for dropout
        placement.seed(seed_of_rank(config.train.seed, placement.rank))
    return model


def adapt(
    model: PreTrainedModel,
    config: RunConfig,
    rows: Sequence[Example] = (),
    checkpoint: Path | None = None,
    *,
    say: bool = True,
) -> None:
    """Add adapters to ``model`` as ``config`` says, in place, and print the remarks on them.

    The arguments are as above; ``say`` is whether to print.
    """
    lora = config.lora if checkpoint is None else _with_ranks_of(checkpoint, config.lora)
    originals = None
    if lora.init == "loftq" and checkpoint is None:
        originals = original_weights(config.model.name, config.model.dtype)
    report = add_lora(model, lora, rows=rows, originals=originals, values=checkpoint is None)
    sys.stderr.writelines(f"{note}\n" for note in report.notes if say)
    apply_merge_aware(model, config)


def _with_ranks_of(checkpoint: Path, lora: LoRAConfig) -> LoRAConfig:
    """``lora`` with the targets and ranks of the checkpoint, if EVA has chosen them."""
    if lora.init != "eva":
        return lora
    saved = read_config(checkpoint)
    targets = saved.target_modules
    return lora.model_copy(
        update={
            "rank": saved.r,
            "alpha": float(saved.lora_alpha),
            "targets": targets if isinstance(targets, str) else tuple(targets or ()),
            "exclude": (),
            "rank_pattern": saved.rank_pattern,
            "alpha_pattern": saved.alpha_pattern,
        }
    )
