"""What a model can take: whether rows fit its embedding table, its positions, its markers.

`graftlm check` asks this of a model's files, and training asks the same before it starts.
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
"""Model types that rotate by a table of fixed length."""
_UNTRAINED = 0.5
"""Norm of a row, relative to the least of 1 in 100 ordinary rows, below which it is untrained."""


@dataclass(frozen=True)
class ModelLimits:
    """What a model's configuration says about the rows it can read.

    Attributes:
        vocab_size: rows of the embedding table; ``None`` where it is not known.
        positions: tokens that the model was made for; ``None`` where there is no limit.
        fixed: more positions do not exist, as each has a row of its own.
    """

    vocab_size: int | None = None
    positions: int | None = None
    fixed: bool = False


def limits_of(config: Mapping[str, Any]) -> ModelLimits:
    """The limits that a ``config.json`` names.

    Args:
        config: its content; that of the text part is looked at where there are several.
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
    """Rows that the model cannot read, or was not made for."""
    found: list[Finding] = []
    highest = getattr(examples, "highest_id", None)  # known without a look at each row
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

    Adapters leave the table as it is, so the model reads such a marker as noise, and where the
    output layer is the same table, it cannot come to write it.

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
