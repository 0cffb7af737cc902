"""Measures a finished run by its result on disk, loaded as a user loads it.

It measures the loss of the final model on training rows (the losses of the last steps are those of
earlier models), the loss on text outside the task before and after training, the share of right
answers, and the size of the result.
"""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np

from graftlm.adapters.peft_format import load_adapter
from graftlm.config import DataConfig, RunConfig
from graftlm.data.example import Example
from graftlm.data.examples import held_out, load_examples, split
from graftlm.data.formats import Row, RowError, parse_row
from graftlm.data.scoring import score, total
from graftlm.data.sources import open_source
from graftlm.data.tokenise import render_prompt, stop_tokens
from graftlm.errors import DataError
from graftlm.models import generate_text, load_model
from graftlm.training import evaluate
from graftlm.training.resolve import embeddings_of
from graftlm.training.run_folder import result_folder

__all__ = ["answers_right", "measure", "scored_rows"]

TRAINING_ROWS = 200
"""Maximum training rows for the loss of the final model, spread evenly over the data."""
_DECODED_AT_ONCE = 25


def measure(config: RunConfig, outside: Path, score_rows: int) -> dict[str, Any]:
    """Measure the result in ``config.out``.

    Args:
        config: the run's settings.
        outside: a file of text outside the task.
        score_rows: held-out rows to answer; 0 asks for none.

    Returns:
        ``train_loss``, ``outside_before``, ``outside_after`` (nats a token), ``artifact_bytes``,
        and with ``score_rows`` the result of `answers_right`.
    """
    result = result_folder(Path(config.out), config.method)
    batch = config.train.batch_size
    model, tokenizer = _base(config)
    # Of the settings for the task's rows, only the length applies to this file.
    plain = DataConfig(
        train=str(outside), max_length=config.data.max_length, truncation="split", loss_on="all"
    )
    text = load_examples(plain.train, tokenizer, plain)
    before = evaluate(model, text, batch).loss
    model, _ = _trained(config, model, tokenizer)
    found: dict[str, Any] = {
        "train_loss": evaluate(model, _training_sample(config, tokenizer), batch).loss,
        "outside_before": before,
        "outside_after": evaluate(model, text, batch).loss,
        "artifact_bytes": sum(file.stat().st_size for file in result.rglob("*.safetensors")),
    }
    del model
    gc.collect()
    return found | (answers_right(config, score_rows) if score_rows else {})


def answers_right(config: RunConfig, count: int) -> dict[str, Any]:
    """Greedy answers to held-out rows: ``exact_match`` and, for JSON records, ``field_accuracy``.

    Text is compared without surrounding space, a JSON record as an object.
    """
    rows = scored_rows(config, count)
    model, tokenizer = _trained(config, *_base(config, "auto"))
    model.train(False)
    wanted = [_answer(row) for row in rows]
    longest = max(len(tokenizer(text).input_ids) for text in wanted) + 8
    given: list[str] = []
    for start in range(0, len(rows), _DECODED_AT_ONCE):
        prompts = [
            render_prompt(row, tokenizer, config.data)
            for row in rows[start : start + _DECODED_AT_ONCE]
        ]
        stop = stop_tokens(tokenizer, config.data)
        found = generate_text(model, tokenizer, prompts, max_new_tokens=longest, stop=stop)
        given += [answer.text for answer in found]
    if not all(_is_record(text) for text in wanted):
        right = sum(a.strip() == b.strip() for a, b in zip(given, wanted, strict=True))
        return {"scored_rows": len(rows), "exact_match": right / len(rows)}
    scores = total(score(a, b) for a, b in zip(given, wanted, strict=True))
    return {
        "scored_rows": len(rows),
        "exact_match": scores.exact_match,
        "field_accuracy": scores.field_accuracy,
    }


def scored_rows(config: RunConfig, count: int) -> list[Row]:
    """The first ``count`` held-out rows that have a prompt and an answer.

    Raises:
        DataError: there is none.
    """
    data = config.data
    source = data.eval or data.train
    names = [source] if isinstance(source, str) else list(source)
    found: list[Row] = []
    for name in names:
        for raw in open_source(name, "train" if data.eval is None else "eval"):
            row = _row(raw.value, config)
            if row is not None and (data.eval or _held(row, data.eval_fraction)):
                found.append(row)
            if len(found) == count:
                return found
    if not found:
        raise DataError(
            "--score-rows: no held-out row has a prompt and an answer to compare with. Expected "
            "prompt/completion or chat rows; leave --score-rows out for plain text."
        )
    return found


def _row(value: Any, config: RunConfig) -> Row | None:
    """The row if it has an answer; the training reports malformed rows."""
    try:
        row = parse_row(
            json.loads(value) if isinstance(value, bytes) else value,
            config.data.columns,
            format=config.data.format,
            ignore=config.data.ignore,
        )
    except (RowError, ValueError):
        return None
    return row if row.kind != "text" and _answer(row) else None


def _held(row: Row, fraction: float) -> bool:
    return bool(held_out(np.array([row.content_hash()], dtype=np.uint64), fraction)[0])


def _answer(row: Row) -> str:
    if row.kind == "completion":
        return row.completion
    last = row.messages[-1]
    return str(last.get("content") or "") if last["role"] == "assistant" else ""


def _is_record(text: str) -> bool:
    try:
        return bool(value := json.loads(text)) and isinstance(value, dict)
    except ValueError:
        return False


def _training_sample(config: RunConfig, tokenizer: Any) -> list[Example]:
    rows = load_examples(config.data.train, tokenizer, config.data)
    if not config.data.eval and config.data.eval_fraction:
        rows, _ = split(rows, config.data.eval_fraction)
    count = min(TRAINING_ROWS, len(rows))
    return [rows[index * len(rows) // count] for index in range(count)]


def _trained(config: RunConfig, base: Any, tokenizer: Any) -> tuple[Any, Any]:
    """The result: the adapter on ``base``, or the whole model instead of ``base``."""
    result = result_folder(Path(config.out), config.method)
    if config.method != "full":
        load_adapter(base, result)
        return base, tokenizer
    # Empty the base first: the caller still refers to it, so two models would be in memory.
    dtype = str(base.dtype).removeprefix("torch.")
    base.to("meta")
    gc.collect()
    return load_model(str(result), quantize=None, dtype=dtype, device=config.device)


def _base(config: RunConfig, dtype: str | None = None) -> tuple[Any, Any]:
    """The base model as in this run: in 4 bits, unchanged, or in float32."""
    return load_model(
        config.model.name,
        quantize=config.model.weight_format if config.method == "qlora" else None,
        dtype=dtype or ("float32" if config.method == "full" else config.model.dtype),
        block_size=config.model.block_size,
        double_quant=config.model.double_quant,
        embeddings=embeddings_of(config),
        trust_remote_code=config.model.trust_remote_code,
        device=config.device,
    )
