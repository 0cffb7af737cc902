"""The training and held-out rows of a run as tokens, from a source or from given examples."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from graftlm.config import DataConfig
from graftlm.data.audit import audit
from graftlm.data.batch import Example
from graftlm.data.examples import load_examples, split_to_train
from graftlm.data.folders import Purpose
from graftlm.data.pack import pack_examples
from graftlm.data.store import Examples
from graftlm.errors import ConfigError
from graftlm.training.objective import Objective

__all__ = ["packed", "read_rows", "require_examples"]


def read_rows(
    tokenizer: Any, config: DataConfig, data: Any, eval_data: Any
) -> tuple[Sequence[Example], Sequence[Example]]:
    """The training examples and the held-out examples.

    Args:
        tokenizer: the model's.
        config: how rows become tokens.
        data: a source of rows, or examples.
        eval_data: the same; ``None`` or empty for none.

    Raises:
        ConfigError: the settings ask to hold out a share of examples that are already tokens.
    """
    examples = _read(data, tokenizer, config, "train")
    held: Sequence[Example] = _read(eval_data, tokenizer, config, "eval") if eval_data else []
    if not held and config.eval_fraction:
        if not isinstance(examples, Examples):
            raise ConfigError(
                f"data.eval_fraction={config.eval_fraction} holds out rows of a source. Of "
                "examples in hand, choose those to measure on and pass them as eval_data"
            )
        examples, held = split_to_train(examples, config.eval_fraction)
    return examples, held


def require_examples(objective: Objective, rows: Sequence[Any]) -> Sequence[Example]:
    """The token sequences of ``rows``.

    Raises:
        DataError: they contain no supervised token.
    """
    examples = objective.examples_in(rows)
    audit.require_trainable(examples)
    return examples


def packed(examples: Sequence[Example], config: DataConfig) -> Sequence[Example]:
    """The examples, packed into sequences if the settings say so."""
    return pack_examples(examples, config.max_length) if config.packing else examples


def _read(source: Any, tokenizer: Any, config: DataConfig, purpose: Purpose) -> Sequence[Example]:
    """The tokenised rows of a source; given examples are returned unchanged."""
    if not isinstance(source, str | Path | Mapping):
        return cast("Sequence[Example]", source)
    examples = load_examples(source, tokenizer, config, purpose=purpose)
    for line in examples.report.said(str(source), config.max_length):
        print(line, file=sys.stderr)
    return examples
