"""Checks that rows fit a model: its embedding table, its positions, its markers.

`graftlm check` and the start of training use the same checks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from graftlm.data.audit.findings import Finding
from graftlm.data.example import Example

__all__ = ["ModelLimits", "fit_findings", "limits_of", "untrained_findings"]

_POSITIONS = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "max_seq_len",
    "n_ctx",
    "seq_length",
)
_ROTARY = ("rope_theta", "rope_parameters", "rope_scaling", "rotary_dim", "rotary_pct", "alibi")
_TABLES = ("gptj", "codegen")
"""Model types whose rotary embeddings are in a table of fixed length."""
_UNTRAINED = 0.5
"""A row is untrained if its norm, relative to the first percentile of ordinary rows, is below."""


@dataclass(frozen=True)
class ModelLimits:
    """The limits on rows in a model's configuration.

    Attributes:
        vocab_size: rows of the embedding table; ``None`` if unknown.
        positions: the length that the model was trained for; ``None`` if there is no limit.
        fixed: whether a longer row is impossible, because each position has its own embedding.
    """

    vocab_size: int | None = None
    positions: int | None = None
    fixed: bool = False


def limits_of(config: Mapping[str, Any]) -> ModelLimits:
    """The limits that a ``config.json`` names.

    Args:
        config: its content; if it has several parts, the text part is used.
    """
    text = config.get("text_config")
    parts = [config, *([text] if isinstance(text, Mapping) else [])]

    def number(names: Sequence[str]) -> int | None:
        found = [part.get(name) for part in parts for name in names]
        return next(
            (n for n in found if isinstance(n, int) and not isinstance(n, bool) and n > 0), None
        )

    rotary = any(part.get(name) for part in parts for name in _ROTARY)
    fixed = not rotary or config.get("model_type") in _TABLES
    return ModelLimits(number(("vocab_size",)), number(_POSITIONS), fixed)


def fit_findings(examples: Sequence[Example], limits: ModelLimits) -> list[Finding]:
    """Findings on rows that the model cannot read, or was not trained for."""
    found: list[Finding] = []
    highest = getattr(examples, "highest_id", None)  # known without reading each row
    if limits.vocab_size is not None and (highest is None or highest >= limits.vocab_size):
        beyond = sum(
            int(np.max(example.input_ids, initial=0)) >= limits.vocab_size for example in examples
        )
        if beyond:
            found.append(
                Finding("vocabulary", "error", beyond, "examples hold token ids the model's "
                        f"embedding ({limits.vocab_size} rows) lacks: the tokenizer is not the "
                        "model's")
            )  # fmt: skip
    if limits.positions is not None:
        sizes = getattr(examples, "lengths", None)
        lengths = [len(example) for example in examples] if sizes is None else sizes
        if longer := int((np.asarray(lengths) > limits.positions).sum()):
            what = f"examples are longer than the {limits.positions:,} positions "
            end = f"set data.max_length to {limits.positions} at most"
            if limits.fixed:
                text = f"{what}that the model has: {end}"
                found.append(Finding("positions", "error", longer, text))
            else:
                text = f"{what}that the model was made for, and it reads them worse: {end}"
                found.append(Finding("positions", "warning", longer, text))
    return found


def untrained_findings(
    markers: Mapping[str, npt.NDArray[np.float32]], ordinary: npt.NDArray[np.float32]
) -> list[Finding]:
    """Markers of the template whose embedding was never trained, as in many base models.

    Adapters do not change the table, so the model reads such a marker as noise. If the output layer
    shares the table, the model cannot learn to write the marker.

    Args:
        markers: text of a marker → its row of the table, (hidden size,).
        ordinary: rows of ordinary tokens, (rows, hidden size).
    """
    norms = np.linalg.norm(ordinary, axis=1)
    least = float(np.quantile(norms, 0.01)) * _UNTRAINED
    untrained = [text for text, row in markers.items() if float(np.linalg.norm(row)) < least]
    known = {row.tobytes(): text for text, row in reversed(list(markers.items()))}
    copies = [text for text, row in markers.items() if known[row.tobytes()] != text]
    names = dict.fromkeys([*untrained, *copies])
    if not names:
        return []
    return [
        Finding("untrained_markers", "warning", len(names), "markers of the chat template were "
                f"never trained in this model: {', '.join(map(repr, names))}. Use the "
                "instruction-tuned model, or a template without them "
                "(data.chat_template=plain, alpaca, vicuna)")
    ]  # fmt: skip
