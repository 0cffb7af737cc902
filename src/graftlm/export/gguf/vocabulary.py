"""The tokenizer as GGUF holds it: tokens, their types, and scores or merges.

Two kinds are written:

- byte-level BPE (``gpt2`` in GGUF): tokens, merges, and the name of the rule that splits text into
  words. llama.cpp knows the rules by name; a rule that is not recognised is refused, because
  another rule would give other tokens without a word;
- SentencePiece BPE (``llama``): tokens and scores. llama.cpp joins the pair whose result has the
  highest score, transformers the pair that comes first in the list of merges. The score is
  therefore minus the place of the first merge that gives the token.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from graftlm.errors import ArtifactError

__all__ = ["Vocabulary", "vocabulary"]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Token types of GGUF."""

LEAST_SCORE = -1e9
"""Of a token that no merge gives; only its own text can become it."""

SPLITS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+": "llama-bpe",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+": "tekken",
}
"""The name in llama.cpp of each regular expression that splits text into words."""


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The fields under ``tokenizer.ggml``.

    Attributes:
        model: ``gpt2`` or ``llama``.
        split: the name of the rule that splits words, for ``gpt2``.
        tokens: by id.
        types: of each token.
        scores: of each token, for ``llama``.
        merges: ``left right``, for ``gpt2``.
        special: ids by role: bos, eos, unknown, padding.
        add_bos: whether each text begins with the begin token.
        add_eos: whether each text ends with the end token.
        add_space_prefix: whether a space is put before each text.
    """

    model: str
    split: str | None
    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    merges: list[str] | None
    special: dict[str, int]
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool


def vocabulary(tokenizer: Any, size: int) -> Vocabulary:
    """The vocabulary of ``tokenizer``, filled up to the model's ``size``.

    Raises:
        ArtifactError: the tokenizer is of a kind that is not written.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ArtifactError("the tokenizer has no tokenizer.json, which an export to GGUF reads")
    described = json.loads(backend.to_str())
    kind = described["model"]["type"]
    if kind != "BPE":
        raise ArtifactError(
            f"the tokenizer is of the kind {kind}; written are byte-level BPE and SentencePiece BPE"
        )
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [UNUSED] * size
    bytewise = bool(described["model"].get("byte_fallback"))
    for token, place in described["model"]["vocab"].items():
        tokens[place] = token
        types[place] = BYTE if bytewise and _is_byte(token) else NORMAL
    for added in described["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    if (unknown := tokenizer.unk_token_id) is not None and bytewise:
        types[unknown] = UNKNOWN
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in _merges(described)]
    text = tokenizer("a", add_special_tokens=True)["input_ids"]
    split = None if bytewise else _split_of(described)
    return Vocabulary(
        model="llama" if bytewise else "gpt2",
        split=split,
        tokens=tokens,
        types=types,
        scores=_scores(tokens, _merges(described)) if bytewise else None,
        merges=None if bytewise else merges,
        special=_special(tokenizer),
        add_bos=bool(text) and text[0] == tokenizer.bos_token_id,
        add_eos=bool(text) and text[-1] == tokenizer.eos_token_id,
        add_space_prefix=bytewise and _prefixed(described),
    )


def _merges(described: dict[str, Any]) -> list[Any]:
    found: list[Any] = described["model"]["merges"]
    return found


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _scores(tokens: list[str], merges: list[Any]) -> list[float]:
    first: dict[str, int] = {}
    for place, pair in enumerate(merges):
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        first.setdefault(left + right, place)
    return [-float(first[token]) if token in first else LEAST_SCORE for token in tokens]


def _special(tokenizer: Any) -> dict[str, int]:
    roles = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    found = {role: getattr(tokenizer, f"{name}_token_id") for role, name in roles.items()}
    return {role: token for role, token in found.items() if token is not None}


def _prefixed(described: dict[str, Any]) -> bool:
    """Whether a space is put before the text, by the normaliser or the pre-tokenizer."""
    parts = json.dumps([described["normalizer"], described["pre_tokenizer"]])
    return '"Prepend"' in parts or '"prepend_scheme": "always"' in parts or (
        '"prepend_scheme": "first"' in parts
    )  # fmt: skip


def _split_of(described: dict[str, Any]) -> str:
    """The name in llama.cpp of the rule that splits words."""
    before = described["pre_tokenizer"] or {}
    steps = before.get("pretokenizers", [before])
    patterns = [step["pattern"]["Regex"] for step in steps if "Regex" in step.get("pattern", {})]
    levels = [step for step in steps if step.get("type") == "ByteLevel"]
    if len(patterns) == 1 and patterns[0] in SPLITS and levels:
        return SPLITS[patterns[0]]
    if not patterns and len(steps) == 1 and levels and levels[0].get("use_regex", True):
        return "gpt-2"
    raise ArtifactError(
        "the tokenizer splits text by a rule that is not known under a name of llama.cpp: "
        f"{json.dumps(before)[:300]}"
    )
