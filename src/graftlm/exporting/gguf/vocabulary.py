"""The tokenizer as GGUF holds it: tokens, their types, and scores or merges.

Two kinds are written:

- byte-level BPE (``gpt2`` in GGUF): tokens, merges, and the name of the rule that splits text into
  words. llama.cpp knows the rules by name; a rule that is not recognised is refused, because
  another rule would give other tokens without a word;
- SentencePiece BPE (``llama``): tokens and scores. llama.cpp joins the pair whose result has the
  highest score, transformers the pair that comes first in the list of merges. The score is
  therefore minus the place of the first merge that gives the token; see `_scores`.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

from graftlm.data import stop_tokens
from graftlm.errors import ArtifactError

__all__ = ["LEAST_SCORE", "UNUSED", "Vocabulary", "added_tokens", "unused_token", "vocabulary"]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Token types of GGUF."""

LEAST_SCORE = -1e9
"""Of a token that no merge gives; only its own text can become it."""

_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = _SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE, _REST_SLASH = r"[^\r\n\p{L}\p{N}]?", _REST.replace(r"[\r\n]*", r"[\r\n/]*", 1)
SPLITS = {
    _WORD + r"|\p{N}{1,3}" + _REST: "llama-bpe",
    _WORD + r"|\p{N}" + _REST: "qwen2",
    f"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*" + r"|\p{N}" + _REST_SLASH: "tekken",
    f"{_BEFORE}{_UPPER}*{_LOWER}+{_SHORT}?|{_BEFORE}{_UPPER}+{_LOWER}*{_SHORT}?"
    r"|\p{N}{1,3}" + _REST_SLASH: "gpt-4o",
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
        special: ids by role: bos, eos, unknown, padding, and eot: the end of an answer in a chat.
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
    added = {token["id"]: token for token in described["added_tokens"]}
    if (last := max([*described["model"]["vocab"].values(), *added])) >= size:
        raise ArtifactError(f"the tokenizer has token {last}, and the model {size} rows for tokens")
    tokens = [unused_token(i) for i in range(size)]
    types = [UNUSED] * size
    bytewise = bool(described["model"].get("byte_fallback"))
    for token, place in described["model"]["vocab"].items():
        tokens[place] = token
        types[place] = BYTE if bytewise and _is_byte(token) else NORMAL
    for place, token in added.items():
        tokens[place] = token["content"]
        types[place] = CONTROL if token["special"] else USER_DEFINED
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
        scores=_scores(described, tokens) if bytewise else None,
        merges=None if bytewise else merges,
        special=_special(tokenizer),
        add_bos=bool(text) and text[0] == tokenizer.bos_token_id,
        add_eos=bool(text) and text[-1] == tokenizer.eos_token_id,
        add_space_prefix=bytewise and _prefixed(described),
    )


def unused_token(place: int) -> str:
    """The text of a row of the table that is no token."""
    return f"[PAD{place}]"


def added_tokens(tokenizer: Any, base: Any) -> dict[int, tuple[str, int]]:
    """The text and the type of each token that ``tokenizer`` has and that of the base has not."""
    known = base.get_vocab()
    return {
        place: (token.content, CONTROL if token.special else USER_DEFINED)
        for place, token in tokenizer.added_tokens_decoder.items()
        if token.content not in known
    }


def _merges(described: dict[str, Any]) -> list[Any]:
    found: list[Any] = described["model"]["merges"]
    return found


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _scores(described: dict[str, Any], tokens: list[str]) -> list[float]:
    """The scores that give the same tokens as the list of merges.

    There are such scores if the merges that give one token stand together, and if the token is
    merged from every two tokens that it can be cut into. The list of a tokenizer that was converted
    from SentencePiece is of this kind.

    Raises:
        ArtifactError: there are none.
    """
    known = described["model"]["vocab"]
    places: dict[str, list[int]] = {}
    for place, pair in enumerate(_merges(described)):
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        places.setdefault(left + right, []).append(place)
    for token, there in places.items():
        cuts = sum(token[:i] in known and token[i:] in known for i in range(1, len(token)))
        if cuts != len(there) or there[-1] - there[0] != cuts - 1:
            raise ArtifactError(
                f"the tokenizer merges {token!r} from {len(there)} of the {cuts} pairs of tokens "
                "that give it, or at different places of its list. llama.cpp merges by a score of "
                "the result, so it would split some texts into other tokens"
            )
    return [-float(places[token][0]) if token in places else LEAST_SCORE for token in tokens]


def _special(tokenizer: Any) -> dict[str, int]:
    roles = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    found = {role: getattr(tokenizer, f"{name}_token_id") for role, name in roles.items()}
    if getattr(tokenizer, "chat_template", None) and tokenizer.eos_token is not None:
        ends = stop_tokens(copy.copy(tokenizer))  # a copy, because it may set the template
        found["eot"] = next((token for token in ends if token != tokenizer.eos_token_id), None)
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
    if len(patterns) == 1 and patterns[0] in SPLITS and levels and len(steps) == 2:
        name = SPLITS[patterns[0]]
        # The same rule; only under the first name llama.cpp takes whole words without merging.
        whole = described["model"].get("ignore_merges")
        return "dbrx" if name == "llama-bpe" and not whole else name
    digits = steps[0].get("type") == "Digits" and steps[0].get("individual_digits")
    if digits and len(steps) == 2 and levels and levels[0].get("use_regex", True):
        return "smollm"
    if not patterns and len(steps) == 1 and levels and levels[0].get("use_regex", True):
        return "gpt-2"
    raise ArtifactError(
        "the tokenizer splits text by a rule that is not known under a name of llama.cpp: "
        f"{json.dumps(before)[:300]}"
    )
