"""Opens a written GGUF file again and compares every tensor with the merged weight.

    error = ‖file − merged‖ / ‖merged‖        at most the rounding of the tensor's type
    kept  = ⟨file − base, merged − base⟩ / ‖merged − base‖²        of the tensors that were adapted

The file's reader is the `gguf` library's own. ``kept`` is 1 if the file holds the adapter's update
and 0 if it holds the base's weight. In 4 bits a small update drowns in the rounding of single
tensors, so that the sum over all tensors is judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graftlm.errors import GraftLMError
from graftlm.exporting.gguf.library import gguf_library
from graftlm.exporting.gguf.tensors import FileTensor, in_file_layout, merged_tensors
from graftlm.exporting.merge_plan import Merge
from graftlm.exporting.target import Proof
from graftlm.models.vocabulary import padded

__all__ = ["LEAST_KEPT", "prove"]

LARGEST_ERROR = {
    "F32": 1e-6,
    "F16": 1e-3,
    "BF16": 4e-3,
    "Q8_0": 1.5e-2,
    "Q6_K": 4e-2,
    "Q5_0": 8e-2,
    "Q5_1": 8e-2,
    "Q5_K": 8e-2,
    "Q4_0": 0.25,
    "Q4_1": 0.25,
    "Q4_K": 0.25,
}
"""Several times the error of a normal distribution in the type, by type. Weights with outliers have
more: 0.152 in Q4_0 for a layer of Gemma-3-270M. That of another tensor's values is above 1.
"""
LEAST_KEPT = 0.5


def prove(
    file: Path,
    merge: Merge,
    plan: list[FileTensor],
    config: Any,
    template: str | None,
    added: Mapping[int, tuple[str, int]] | None = None,
) -> Proof:
    """Compare the file's tensors, chat template and new tokens with what was to be written.

    Returns:
        Figures: ``tensors`` compared, ``adapted`` among them, ``largest_error``, and ``kept``; a
        problem names the first tensor that differs.
    """
    try:
        reader = gguf_library().GGUFReader(file)
    except Exception as error:  # the library raises many types for a damaged file
        return Proof([f"{file} cannot be read again: {type(error).__name__}: {error}"], {})
    stored = {tensor.name: tensor for tensor in reader.tensors}
    problems = []
    if missing := sorted({tensor.name for tensor in plan} - stored.keys()):
        problems.append(f"{len(missing)} tensors are missing, the first {missing[0]}")
    field = reader.fields.get("tokenizer.chat_template")
    if template and (field is None or field.contents() != template):
        problems.append("the chat template of the training is not in the file")
    problems += _tokens_missing(reader, added or {}, merge.rows)
    largest, along, exact, adapted = 0.0, 0.0, 0.0, 0
    by_key = {merge.places[key]: key for key in merge.weights}
    if not missing:
        for tensor, value in merged_tensors(merge, plan):
            expected = in_file_layout(tensor.parameter, value, config)
            written = _dequantised(stored[tensor.name])
            if written.shape != expected.shape:
                problems.append(f"{tensor.name} has the shape {tuple(written.shape)}")
                break
            away = float((written - expected).norm() / expected.norm().clamp_min(1e-30))
            largest = max(largest, away)
            # The base's own tensors were rounded to bfloat16 when it was converted.
            allowed = LARGEST_ERROR["BF16" if tensor.kept else tensor.type]
            if not away <= allowed:
                problems.append(
                    f"{tensor.name} is the first tensor that differs: its error is {away:.3g}, "
                    f"expected at most {allowed:g} in {tensor.type}"
                )
                break
            if tensor.parameter in merge.deltas and tensor.parameter in by_key:
                rows = merge.rows if tensor.parameter in merge.longer else 0
                base = padded(merge.base_weight(by_key[tensor.parameter]), rows)
                change = expected - in_file_layout(tensor.parameter, base, config)
                along += float(((written - expected + change) * change).sum())
                exact += float(change.square().sum())
                adapted += 1
    kept = along / exact if exact else 1.0
    figures = {
        "tensors": len(plan),
        "adapted": adapted,
        "largest_error": largest,
        "kept": kept,
    }
    if not exact:
        problems.append("the adapter changes no weight: the file holds the base model")
    elif not problems and kept < LEAST_KEPT:
        problems.append(f"{kept:.0%} of the adapter's update is in the file")
    return Proof(problems, figures)


def _tokens_missing(reader: Any, added: Mapping[int, tuple[str, int]], rows: int) -> list[str]:
    if not added and not rows:
        return []
    field = reader.fields.get("tokenizer.ggml.tokens")
    tokens = [] if field is None else field.contents()
    if len(tokens) < rows:
        return [f"the file lists {len(tokens)} tokens for {rows} rows"]
    lost = [text for place, (text, _) in added.items() if tokens[place : place + 1] != [text]]
    return [f"the new token {lost[0]!r} is not in the file's list"] if lost else []


def _dequantised(tensor: Any) -> Tensor:
    library = gguf_library()
    try:
        array = library.quants.dequantize(tensor.data, tensor.tensor_type)
    except (ValueError, NotImplementedError) as error:
        raise GraftLMError(f"{tensor.name}: {error}") from error
    return torch.from_numpy(array.copy()).float()
