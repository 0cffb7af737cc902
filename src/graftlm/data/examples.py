"""`load_examples`: from a source of rows to tokenised examples.

Small data is tokenised in memory. Large files are tokenised into the cache and memory-mapped. The
cache's key is their content, the settings that change tokens, and the tokenizer. So a second run or
process does not tokenise them again.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Union

import numpy as np
import numpy.typing as npt

import graftlm
from graftlm.cache import cache_folder, forget, once
from graftlm.config import DataConfig
from graftlm.data.folders import Purpose
from graftlm.data.prepare import Prepared, chunks
from graftlm.data.sources import Data, Source, open_source
from graftlm.data.store import DamagedCacheError, Examples, in_memory, open_folder, write_folder
from graftlm.data.tokenise import Encoder
from graftlm.data.workers import prepare_all
from graftlm.errors import ConfigError, DataError
from graftlm.files import require_free_space

__all__ = ["load_examples", "split", "split_to_train"]

CACHE_FROM = 16 << 20
"""Files of at least this size in bytes use the cache."""
_CACHE_BYTES_PER_BYTE = 2.0
"""Maximum cache bytes for each byte of rows: a token of two characters takes 4.2 bytes."""

Mix = Union[Data, Mapping[str, float]]  # noqa: UP007 - evaluated on Python 3.10


def load_examples(
    data: Mix,
    tokenizer: Any,
    config: DataConfig,
    *,
    strict: bool = True,
    purpose: Purpose = "train",
) -> Examples:
    """Read, recognise, render, tokenise and truncate.

    Args:
        data: a path, folder, glob, ``-``, Hub data set, or iterable of rows; or several of them,
            ``{source: weight}``: a weight of 2 takes each row twice, one of 0.5 every second row.
        tokenizer: the model's; its chat template is set.
        config: the data settings.
        strict: refuse malformed rows and data that would train nothing; ``False`` only counts them.
        purpose: the use of the rows; it decides which of several splits is read.

    Raises:
        DataError: the source cannot be read, rows are malformed (the first few are listed with
            file and line), or nothing is left to learn from.
    """
    encoder = Encoder(tokenizer, config)
    if isinstance(data, Mapping) and all(isinstance(w, int | float) for w in data.values()):
        if bad := [f"{name}: {weight}" for name, weight in data.items() if not weight > 0]:
            raise ConfigError(f"weights of sources must be above 0, found {', '.join(bad)}")
        loaded = [
            _weighted(_load(open_source(name, purpose), encoder, config, strict), weight)
            for name, weight in data.items()
        ]
        examples = Examples.joined(loaded)
        name = " and ".join(data)
    else:
        source = open_source(data, purpose)
        examples, name = _load(source, encoder, config, strict), source.name
    if strict:
        _require_some(examples, name, config)
    return examples


def split_to_train(examples: Examples, fraction: float) -> tuple[Examples, Examples]:
    """`split`, if both parts are needed.

    Raises:
        DataError: one of them would be empty.
    """
    kept, held = split(examples, fraction)
    if not len(kept) or not len(held):
        raise DataError(
            f"data.eval_fraction={fraction} of {len(examples)} examples leaves {len(kept)} to "
            f"train on and {len(held)} to measure on. Choose another share, or name the rows to "
            "measure on (data.eval)."
        )
    return kept, held


def split(examples: Examples, fraction: float) -> tuple[Examples, Examples]:
    """The training rows, and about ``fraction`` of all rows, held out by their content."""
    held = held_out(examples.hashes, fraction)
    return examples.select(np.flatnonzero(~held)), examples.select(np.flatnonzero(held))


def held_out(hashes: npt.NDArray[np.uint64], fraction: float) -> npt.NDArray[np.bool_]:
    """Which rows are held out; this depends only on a row's content, not on its place or file."""
    # Mix the hashes again, so that a split of a split is not empty.
    mixed = hashes * np.uint64(0x9E3779B97F4A7C15)
    return (mixed >> np.uint64(11)) < np.uint64(fraction * 2**53)


def _weighted(examples: Examples, weight: float) -> Examples:
    """Each example ``weight`` times; the content decides which examples get the fraction."""
    copies = np.full(len(examples), int(weight))
    mixed = (examples.hashes ^ np.uint64(0xD6E8FEB86659FD93)) * np.uint64(0x9E3779B97F4A7C15)
    copies += (mixed >> np.uint64(11)) < np.uint64((weight - int(weight)) * 2**53)
    return examples.select(np.repeat(np.arange(len(examples)), copies))


def _load(source: Source, encoder: Encoder, config: DataConfig, strict: bool) -> Examples:
    examples = _read(source, encoder, config, strict)
    examples.report.sources = list(source.notes)
    return examples


def _read(source: Source, encoder: Encoder, config: DataConfig, strict: bool) -> Examples:
    large = source.size >= CACHE_FROM
    parts = prepare_all(chunks(iter(source)), encoder, config, config.workers)
    if not (large and strict):
        return in_memory(_checked(parts) if strict else parts)

    def make(folder: Path) -> None:
        need = int(source.size * _CACHE_BYTES_PER_BYTE)
        require_free_space(cache_folder(), need, "Tokenised data")
        write_folder(folder, _checked(parts))

    key = _key(source, encoder, config)
    try:
        return open_folder(once("data", key, make))
    except DamagedCacheError as error:
        print(f"{source.name}: {error}; it is made again", file=sys.stderr)
        forget("data", key)
        return open_folder(once("data", key, make))


def _checked(parts: Iterator[Prepared]) -> Iterator[Prepared]:
    """Stop at the first chunk with malformed rows."""
    rows = 0
    for part in parts:
        report = part.report
        rows += report.rows
        if report.malformed:
            shown = report.places["malformed"]
            more = report.malformed - len(shown)
            raise DataError(
                "\n".join(shown)
                + (f"\n... and {more} more" if more else "")
                + f"\n{report.malformed} of the first {rows} rows are malformed. Mend or remove "
                "them; graftlm check lists what is wrong with the whole file."
            )
        yield part


def _require_some(examples: Examples, name: str, config: DataConfig) -> None:
    report = examples.report
    if not report.rows:
        raise DataError(f"{name} is empty; expected at least one row")
    if not len(examples):
        raise DataError(
            f"nothing is left to learn from {name}: of {report.rows} rows {report.too_long} are "
            f"longer than max_length={config.max_length}, and in {report.unsupervised} no token "
            "is learned. Raise data.max_length, or set data.truncation to left, right or split; "
            "graftlm check shows the rows."
        )


def _key(source: Source, encoder: Encoder, config: DataConfig) -> str:
    """Digest of all that the examples depend on."""
    names = {
        *("columns", "ignore", "format", "separator"),
        *("max_length", "truncation", "loss_on", "chat_template"),
    }
    tokenizer = encoder.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = [
        source.content_key(),
        json.dumps(config.model_dump(include=names), sort_keys=True),
        backend.to_str() if backend is not None else repr(tokenizer),
        str(tokenizer.chat_template),
        str(tokenizer.special_tokens_map),
        f"{datetime.date.today()}" if encoder.format.dated else "",
        graftlm.__version__,
    ]
    digest = hashlib.blake2b(digest_size=16)
    for text in parts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()
