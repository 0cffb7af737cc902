"""Turns a chunk of rows into a chunk of examples; this work runs in parallel."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from graftlm.config import DataConfig
from graftlm.data.chat import Rendered
from graftlm.data.example import Example
from graftlm.data.formats import Row, parse_row
from graftlm.data.messages import RowError
from graftlm.data.readers import Raw
from graftlm.data.report import LoadReport
from graftlm.data.tokenise import Encoder
from graftlm.data.truncate import truncate

__all__ = ["Prepared", "RenderedChunk", "chunks", "finish", "prepare", "render"]

_CHUNK_ROWS = 1000
_CHUNK_BYTES = 4 << 20
"""Approximate text in a chunk; its tokens take up to 220 bytes of memory for each byte."""
_MOJIBAKE = re.compile("[ÃÂ][\u0080-\u00bf]|â€[\u0090-\u00ff™œ“”\u02dc]|á»[\u0080-\u00bf]")
_MARKERS = re.compile(
    r"<\|im_start\|>|<\|im_end\|>|<start_of_turn>|<end_of_turn>|\[/?INST\]|<\|eot_id\|>"
    r"|<\|start_header_id\|>|### (?:Instruction|Response):|<\|(?:user|assistant|end)\|>"
)
_BRACKETED = re.compile(r"<[^\s<>]{1,40}>|\[[^\s\[\]]{1,40}\]")


@dataclass
class Prepared:
    """Examples of a chunk, end to end, and the report on its rows."""

    input_ids: npt.NDArray[np.int32]
    """(tokens,)"""
    supervised: npt.NDArray[np.bool_]
    """(tokens,)"""
    lengths: npt.NDArray[np.int32]
    """(examples,)"""
    hashes: npt.NDArray[np.uint64]
    """(examples,): the hash of the row of each example."""
    report: LoadReport = field(default_factory=LoadReport)


def chunks(rows: Iterator[Raw]) -> Iterator[list[Raw]]:
    """Rows in groups of bounded size, large enough to send to another process."""
    chunk: list[Raw] = []
    size = 0
    for row in rows:
        chunk.append(row)
        size += _size(row.value)
        if len(chunk) == _CHUNK_ROWS or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _size(value: Any) -> int:
    """Approximate number of characters in a value."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list | tuple) else 8


def prepare(raws: Sequence[Raw], encoder: Encoder, config: DataConfig) -> Prepared:
    """Parse, recognise, render, tokenise and truncate; counts errors instead of raising them."""
    rendered = render(raws, encoder, config)
    return finish(rendered, encoder.encode(rendered.texts), encoder, config)


@dataclass
class RenderedChunk:
    """Rows before tokenisation."""

    raws: list[Raw]
    texts: list[Rendered]
    hashes: list[int]
    report: LoadReport


def render(raws: Sequence[Raw], encoder: Encoder, config: DataConfig) -> RenderedChunk:
    """The first half of `prepare`: parse, recognise and render."""
    chunk = RenderedChunk([], [], [], LoadReport(rows=len(raws)))
    report = chunk.report
    for raw in raws:
        for kind, what in raw.notes:
            report.note(kind, what)
        try:
            row = parse_row(raw.parse(), config.columns, format=config.format, ignore=config.ignore)
            rendered = encoder.format.render(row)
            _require_characters(rendered.text)
        except RowError as error:
            report.malformed += 1
            report.note("malformed", f"{raw.where}: {error}")
            continue
        report.formats[row.format] += 1
        report.kinds[row.kind] += 1
        report.note_unused(row.unused)
        for kind, what in rendered.dropped:
            report.note(kind, f"{raw.where}: {what}")
        _inspect(row, raw, encoder, report)
        chunk.raws.append(raw)
        chunk.texts.append(rendered)
        chunk.hashes.append(row.content_hash())
    return chunk


def finish(
    chunk: RenderedChunk, encodings: Sequence[Any], encoder: Encoder, config: DataConfig
) -> Prepared:
    """The second half of `prepare`: mask, truncate and count."""
    report = chunk.report
    made: list[Example] = []
    hashes: list[int] = []
    examples = encoder.mask(chunk.texts, encodings)
    for raw, row_hash, example in zip(chunk.raws, chunk.hashes, examples, strict=True):
        report.lengths[len(example)] += 1
        if len(example) > config.max_length:
            report.note("long", f"{raw.where}: {len(example)} tokens")
        kept = truncate(example, config, report, encoder.head)
        if not kept and len(example) <= config.max_length:
            report.note("unsupervised", f"{raw.where}: nothing in this row is learned")
        made += kept
        hashes += [row_hash] * len(kept)
    return Prepared(
        np.concatenate([np.asarray(e.input_ids) for e in made] or [np.zeros(0, np.int32)]),
        np.concatenate([np.asarray(e.supervised) for e in made] or [np.zeros(0, np.bool_)]),
        np.array([len(example) for example in made], dtype=np.int32),
        np.array(hashes, dtype=np.uint64),
        report,
    )


def _require_characters(text: str) -> None:
    """Refuse half of a surrogate pair, which no tokenizer can encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - 20) : error.start + 20]
        raise RowError(
            f"{around.encode(errors='replace').decode()!r} holds half a surrogate pair "
            f"(U+{ord(text[error.start]):04X}), expected valid Unicode; the file was cut or "
            "converted wrongly"
        ) from None


def _inspect(row: Row, raw: Raw, encoder: Encoder, report: LoadReport) -> None:
    """Note unusual content of a row that can still be trained on."""
    if row.kind == "chat":
        texts = [message["content"] for message in row.messages]
        answers = [
            message["content"] or ("call" if message.get("tool_calls") else "")
            for message, learn in zip(row.messages, row.learn, strict=True)
            if learn
        ]
        if row.messages[-1]["role"] != "assistant":
            report.note("ends_without_answer", f"{raw.where}: ends with {row.messages[-1]['role']}")
    else:
        # At the very edge, graftlm itself would add this begin or end token.
        tokenizer = encoder.tokenizer
        bos, eos = str(tokenizer.bos_token or ""), str(tokenizer.eos_token)
        first = (row.prompt or row.completion).removeprefix(bos)
        last = (row.completion if row.prompt else first).removesuffix(eos)
        texts = [first, last] if row.prompt else ["", last]
        answers = [last]
    ends = [encoder.tokenizer.convert_ids_to_tokens(i) for i in encoder.format.end_ids]
    if row.kind != "text" and (cut := next((e for e in ends for a in answers if e in a), None)):
        report.note("end_inside_answer", f"{raw.where}: {cut}")
    text = "\n".join(texts)
    if not all(answer.strip() for answer in answers):
        report.note("empty_answer", f"{raw.where}: an answer is empty")
    if row.kind != "text" and row.prompt == "" and not any(t.strip() for t in texts[:-1]):
        report.note("empty_prompt", f"{raw.where}: there is no prompt")
    if "\ufffd" in text:
        report.note(
            "replacement_character", f"{raw.where}: {_around(text, text.index(chr(0xFFFD)))}"
        )
    if not text.isascii() and (found := _MOJIBAKE.search(text)):
        report.note("mojibake", f"{raw.where}: {_around(text, found.start())}")
    if found := _MARKERS.search(text) if "<" in text or "[" in text or "#" in text else None:
        report.note("template_in_text", f"{raw.where}: {_around(text, found.start())}")
    elif "<" in text or "[" in text:
        hits = (m.start() for m in _BRACKETED.finditer(text) if m.group() in encoder.format.markers)
        if (at := next(hits, None)) is not None:
            report.note("special_token_in_text", f"{raw.where}: {_around(text, at)}")


def _around(text: str, at: int) -> str:
    return repr(text[max(0, at - 15) : at + 25])
