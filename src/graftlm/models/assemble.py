"""One function builds the model, for loading and for planning.

    the empty model → weights → norms, gated units, rotary embedding → output layer or 8-bit rows
    → attention

The caller supplies the weights: loading fills them from a checkpoint, planning leaves them empty.
Everything else is the same, so a plan describes the model that a run trains.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from graftlm.errors import ModelError
from graftlm.frozen.experts import FrozenExperts
from graftlm.models.block_attention import quick_attention
from graftlm.models.fuse import fuse_gated_units, fuse_norms, quick_output
from graftlm.models.int8_embeddings import rows_in_int8
from graftlm.models.kind_of_model import auto_class
from graftlm.models.replaced import AssemblyReport, Replacement, compared, keep_report
from graftlm.models.rotary_attention import fuse_rotary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["REPLACEMENTS", "assemble", "empty_model"]

REPLACEMENTS = ("norms", "gated_units", "rotary", "output_layer", "attention")
"""The values of the setting `model.replacements`, in the order in which they are applied."""

logger = logging.getLogger("graftlm")


def assemble(
    config: PretrainedConfig,
    fill: Callable[[PreTrainedModel], PreTrainedModel],
    *,
    replacements: Sequence[str] = REPLACEMENTS,
    embeddings: str = "keep",
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The model of ``config``, with some of its modules replaced by graftlm's.

    Args:
        config: the model's config, without `quantization_config`.
        fill: fills the empty model with weights, its linear layers in their format.
        replacements: the kinds of modules that may be replaced, from `REPLACEMENTS`.
        embeddings: ``"int8"`` stores embedding table and output head in 8 bits.
        dtype: output type of an 8-bit table; by default the type of the original table.
        trust_remote_code: run Python code from the model folder.

    Returns:
        The model. `assembly_report` lists the replacements.

    Raises:
        ModelError: the config is not of a causal language model, or its embeddings cannot be in 8
            bits.
    """
    if unknown := sorted(set(replacements) - set(REPLACEMENTS)):
        raise ModelError(f"replacements: unknown {unknown}: expected some of {list(REPLACEMENTS)}")
    empty = empty_model(config, trust_remote_code)
    before = _classes(empty)
    model = fill(empty)
    replaced = compared("weight_format", before, model, _changed(before, model))
    if stacks := sum(isinstance(module, FrozenExperts) for module in model.modules()):
        replaced.append(Replacement("weight_format", stacks, "Parameter", FrozenExperts.__name__))
    kept = []
    before = _classes(model)
    steps: dict[str, Callable[[Any], list[str]]] = {
        "norms": fuse_norms,
        "gated_units": fuse_gated_units,
        "rotary": fuse_rotary,
        "output_layer": quick_output,
    }
    if embeddings == "int8":  # its output layer is already fast
        del steps["output_layer"]
    for what, replace in steps.items():
        if what in replacements:
            names = replace(model)
            replaced += compared(what, before, model, names)
            kept += [] if names else [what]
    if embeddings == "int8":
        before = _classes(model)
        rows_in_int8(model, dtype)
        replaced += compared("embeddings", before, model, _changed(before, model))
    if "attention" in replacements:
        if quick_attention(model):
            replaced.append(Replacement("attention", 1, "scaled_dot_product", "by blocks"))
        else:
            kept.append("attention")
    report = AssemblyReport(type(model).__name__, tuple(replaced), tuple(kept))
    keep_report(model, report)
    logger.info("%s", report)
    return model


def empty_model(config: PretrainedConfig, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model without weights, on the meta device: names, shapes and ties only."""
    try:
        with torch.device("meta"):
            model: PreTrainedModel = auto_class(config).from_config(
                config, trust_remote_code=trust_remote_code
            )
    except Exception as error:  # torch and the class of the model refuse values in many ways
        why = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        raise ModelError(
            f"no {config.model_type!r} causal language model can be built from its config.json: "
            f"{why}. Compare the file with that of the original model."
        ) from error
    return model


def _classes(model: torch.nn.Module) -> dict[str, str]:
    return {name: type(module).__name__ for name, module in model.named_modules()}


def _changed(before: dict[str, str], model: torch.nn.Module) -> list[str]:
    """Names of the modules whose class differs from ``before``."""
    return [name for name, kind in _classes(model).items() if before.get(name, kind) != kind]
