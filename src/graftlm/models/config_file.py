"""Checks of a model's config.json before anything is built from it.

The libraries believe the file: a negative size ends in torch's own error, 100,000 layers in minutes
of building, a rope base of zero in a model that computes NaN. Here the values of the text model are
compared with what they can be, and its layers with the tensors on the disk, in milliseconds.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from graftlm.config import shown
from graftlm.errors import ModelError, near_matches
from graftlm.models.safetensors_file import Checkpoint

__all__ = ["require_possible"]

_SIZES = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "head_dim"), 10_000_000),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head"), 1_000_000),
    **dict.fromkeys(("num_hidden_layers", "n_layer"), 10_000),
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "n_positions"), 10**9),
}
"""Settings that are whole numbers of at least 1, and the most that is possible."""
_NOT_NEGATIVE = ("intermediate_size", "ffn_dim", "n_inner", "moe_intermediate_size")
_MOST_WIDTH = 10_000_000
_POSITIVE = ("rope_theta", "rope_local_base_freq", "factor", "partial_rotary_factor")
_SHARES = re.compile(r"(\w+_)?(dropout|pdrop)")
"""Names of settings that are the share of values set to zero in training."""
_LAYERS = ("num_hidden_layers", "n_layer")
_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")
_TYPES = re.compile(r"auto|(torch\.)?(float|bfloat|half|double|u?int)\w*")
_LAYER_OF = re.compile(r"(?:layers|layer|h|blocks|block)\.(\d+)\.")
_MOST_DEPTH = 20
_FEW_LAYERS = 500
"""So many are built in a moment; the tensors are then compared one by one."""


def require_possible(folder: Path) -> None:
    """Refuse a config.json whose values no model can have.

    Raises:
        ModelError: all problems at once, each with the setting's name.
    """
    file = folder / "config.json"
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"cannot read {file}: {shown(str(error), 200)}. Fetch the file again."
        ) from error
    if not isinstance(tree, dict):
        raise ModelError(f"{file} holds a {type(tree).__name__}; expected the settings of a model.")
    problems = list(_problems(tree))
    if not problems:
        problems = list(_more_layers_than_weights(tree, folder))
    if problems:
        more = [f"... and {len(problems) - 8} more"] if len(problems) > 8 else []
        raise ModelError(
            f"{file} cannot be of a model:\n"
            + "\n".join([*problems[:8], *more])
            + "\nCompare it with the file of the original model, or fetch it again."
        )


def _problems(tree: dict[str, Any], prefix: str = "", depth: int = 0) -> Iterator[str]:
    if depth > _MOST_DEPTH:
        yield f"{prefix[:80]} is nested more than {_MOST_DEPTH} deep"
        return
    for name, value in tree.items():
        where = f"{prefix}{shown(str(name))}"
        if isinstance(value, dict) and (name == "text_config" or where.startswith("rope_")):
            yield from _problems(value, f"{where}.", depth + 1)
        elif not isinstance(value, dict | None) and (expected := _expected(name, value)):
            yield f"{where} is {shown(value)}: expected {expected}"
    architectures = tree.get("architectures")
    if architectures is not None and not (
        isinstance(architectures, list) and all(isinstance(one, str) for one in architectures)
    ):
        yield f"{prefix}architectures is {shown(architectures)}: expected a list of class names"


def _expected(name: str, value: Any) -> str:
    """What the value of this setting has to be; empty if it is that."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, list) and name not in _ACTIVATIONS:
        return ""  # one for each layer: the model's own class checks them
    if name in _SIZES:
        whole = number and value == int(value) if number and math.isfinite(value) else False
        if not whole or not 1 <= value <= _SIZES[name]:
            return f"a whole number from 1 to {_SIZES[name]:,}"
    elif name in _NOT_NEGATIVE:
        if not number or not 0 <= value <= _MOST_WIDTH:
            return f"a number from 0 to {_MOST_WIDTH:,}"
    elif name in _POSITIVE:
        if not number or not 0 < value < math.inf:
            return "a number above 0"
    elif _SHARES.fullmatch(name) and not isinstance(value, bool):  # ESM switches one on or off
        if not number or not 0 <= value < 1:
            return "a number from 0 to below 1"
    elif name in _ACTIVATIONS:
        return _known_activation(value)
    elif name in ("dtype", "torch_dtype") and not (
        isinstance(value, str) and _TYPES.fullmatch(value)
    ):
        return "the name of a type, such as bfloat16"
    return ""


def _known_activation(value: Any) -> str:
    from transformers.activations import ACT2FN

    if isinstance(value, str) and value in ACT2FN:
        return ""
    hint = near_matches(value, ACT2FN) if isinstance(value, str) else ""
    return f"the name of an activation, such as silu{hint}"


def _more_layers_than_weights(tree: dict[str, Any], folder: Path) -> Iterator[str]:
    """Compare a large number of layers with the tensors on the disk."""
    parts = [tree, *(part for part in tree.values() if isinstance(part, dict))]
    said = {name: part[name] for part in parts for name in _LAYERS if name in part}
    if not any(isinstance(count, int) and count > _FEW_LAYERS for count in said.values()):
        return
    found = (_LAYER_OF.search(key) for key in Checkpoint(folder))
    held = len({int(match[1]) for match in found if match is not None})
    for name, count in said.items():
        if isinstance(count, int) and count > max(held, _FEW_LAYERS):
            yield f"{name} is {count:,}: the weights beside it are of {held:,} layers"
