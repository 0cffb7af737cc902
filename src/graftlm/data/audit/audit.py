"""The audit of examples: what a model learns from them, and the problems in them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from graftlm.config import DataConfig
from graftlm.data.audit.answers import Answers
from graftlm.data.audit.duplicates import NearIndex, repeats
from graftlm.data.audit.findings import Finding, by_notes
from graftlm.data.audit.fits import ModelLimits, fit_findings
from graftlm.data.audit.lengths import (
    histogram,
    packing_efficiency,
    padding_share,
    percentiles,
    recommended_max_length,
)
from graftlm.data.example import Example
from graftlm.data.prompt_format import PromptFormat, format_of
from graftlm.data.store import Examples
from graftlm.data.tokenise import Encoder
from graftlm.errors import DataError

__all__ = ["Audit", "Sample", "audit", "require_trainable"]

_NEAR_LIMIT = 100_000
"""Maximum examples in the search for near-duplicates, which is slow for more."""
_PACK_LIMIT = 200_000


def require_trainable(examples: Sequence[Example]) -> None:
    """The fast part of the audit: refuse examples that would train nothing.

    Raises:
        DataError: there are no examples, or no token in them counts in the loss.
    """
    if not len(examples):
        raise DataError("there are no examples to train on; expected at least one")
    if not any(np.any(np.asarray(example.supervised)[1:]) for example in examples):
        raise DataError(
            f"none of the {len(examples)} examples has a learned token: training on them would "
            "change nothing. Run graftlm check on the data to see why."
        )


@dataclass(frozen=True)
class Sample:
    """One example as text, in pieces that are learned or not."""

    pieces: tuple[tuple[str, bool], ...]
    """(text, whether it is learned), in order."""
    tokens: int


@dataclass
class Audit:
    """The result; `findings` is sorted, the worst first."""

    rows: int
    examples: int
    formats: dict[str, int]
    kinds: dict[str, int]
    """``chat``, ``completion`` (plain text) or ``text`` → rows."""
    asked: str
    """The prompt form of the model, in words."""
    asked_text: str
    """The prompt for a question, which is written as QUESTION."""
    template: str
    max_length: int
    tokens: int
    supervised_tokens: int
    length_percentiles: dict[str, int]
    length_histogram: list[tuple[int, int]]
    """(upper bound in tokens, rows): whole rows, before truncation."""
    too_long: int
    truncated: int
    split: int
    unsupervised: int
    padding_share: float
    """Share of padding in batches of 8 rows of similar length."""
    packing_efficiency: float
    """Share of real tokens in packed sequences of ``max_length``."""
    recommended_max_length: int
    findings: list[Finding] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there is no error among the findings."""
        return not any(finding.severity == "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"ok": self.ok} | asdict(self)


def audit(
    examples: Examples,
    encoder: Encoder,
    config: DataConfig,
    *,
    eval_examples: Examples | None = None,
    limits: ModelLimits | None = None,
    more: Sequence[Finding] = (),
    samples: int = 3,
) -> Audit:
    """Examine everything that will be learned.

    Args:
        examples: loaded with ``strict=False``, so that the report contains malformed rows too.
        encoder: the encoder that made them.
        config: the settings that they were made with.
        eval_examples: the held-out examples, to find rows that are in both.
        limits: the limits of the model.
        more: findings on the model itself.
        samples: the number of examples to show.
    """
    report = examples.report
    lengths = examples.lengths
    answers = Answers(examples, encoder)
    findings = by_notes(report, examples, config, encoder)
    findings += answers.findings(len(examples), config)
    findings += [*fit_findings(examples, limits or ModelLimits()), *more]
    findings += _twice(examples)
    if eval_examples is not None:
        findings += _leaks(examples, eval_examples, answers.prompts, encoder)
    rank = {"error": 0, "warning": 1, "info": 2}
    capacity = max(config.max_length, int(lengths.max(initial=0)))
    asked = format_of(report.kinds, config)
    shown = np.unique(np.linspace(0, max(0, len(examples) - 1), samples).astype(int))
    return Audit(
        rows=report.rows,
        examples=len(examples),
        formats=dict(report.formats),
        kinds=dict(report.kinds),
        asked=str(asked),
        asked_text=_asked_text(encoder, asked),
        template=encoder.format.template,
        max_length=config.max_length,
        tokens=int(lengths.sum()),
        supervised_tokens=answers.supervised,
        length_percentiles=percentiles(report.lengths),
        length_histogram=histogram(report.lengths),
        too_long=report.too_long,
        truncated=report.truncated,
        split=report.split,
        unsupervised=report.unsupervised,
        padding_share=padding_share(lengths),
        packing_efficiency=packing_efficiency(lengths[:_PACK_LIMIT], capacity),
        recommended_max_length=recommended_max_length(report.lengths),
        findings=sorted(findings, key=lambda finding: rank[finding.severity]),
        samples=[sample_of(examples[int(i)], encoder.tokenizer) for i in shown if len(examples)],
    )


def _asked_text(encoder: Encoder, asked: PromptFormat) -> str:
    question = "QUESTION"
    if asked.kind != "chat":
        return question + asked.separator
    return encoder.format.prompt([{"role": "user", "content": question}]).text


def _twice(examples: Examples) -> list[Finding]:
    found = []
    _, again = np.unique(examples.hashes, return_counts=True)
    later, distinct = repeats(examples.hashes)
    windows = examples.report.split > 0  # windows of one row share its hash
    if len(later) and not windows:
        share = len(later) / len(examples)
        found.append(
            Finding("duplicates", "warning" if share > 0.01 else "info", len(later),
                    f"examples repeat one of {distinct} others word for word (up to "
                    f"{int(again.max())} times)")
        )  # fmt: skip
    keep = np.setdiff1d(np.arange(min(len(examples), _NEAR_LIMIT)), later)
    index = NearIndex(examples)
    near = sum(index.find(examples[int(i)], add_as=int(i)) is not None for i in keep)
    if near:
        of = f" (of the first {_NEAR_LIMIT:,})" if len(examples) > _NEAR_LIMIT else ""
        found.append(
            Finding("near_duplicates", "warning" if near > 0.05 * len(keep) else "info", near,
                    f"examples{of} share at least 90 % of their wording with another")
        )  # fmt: skip
    return found


def _leaks(train: Examples, held: Examples, prompts: set[bytes], encoder: Encoder) -> list[Finding]:
    found = []
    same = int(np.isin(held.hashes, train.hashes).sum())
    if same:
        found.append(
            Finding("leakage", "error", same, f"of {len(held)} eval examples are in the training "
                    "data word for word: the eval loss would flatter")
        )  # fmt: skip
    asked = Answers(held, encoder).prompts
    if shared := len(asked & prompts):
        found.append(
            Finding("prompt_leakage", "warning", shared, f"of {len(asked)} eval prompts are in the "
                    "training data (with the same or another answer)")
        )  # fmt: skip
    index = NearIndex(train)
    for i in range(min(len(train), _NEAR_LIMIT)):
        index.find(train[i], add_as=i)
    fresh = np.flatnonzero(~np.isin(held.hashes, train.hashes))[:_NEAR_LIMIT]
    if near := sum(index.find(held[int(i)]) is not None for i in fresh):
        found.append(
            Finding("near_leakage", "warning", near, "eval examples share at least 90 % of their "
                    "wording with a training example")
        )  # fmt: skip
    return found


def sample_of(example: Example, tokenizer: Any) -> Sample:
    """An example as text, in pieces that are learned or not."""
    ids, learned = np.asarray(example.input_ids), np.asarray(example.supervised)
    edges = [0, *(np.flatnonzero(np.diff(learned)) + 1).tolist(), len(ids)]
    return Sample(
        tuple(
            (tokenizer.decode(ids[a:b].tolist(), skip_special_tokens=False), bool(learned[a]))
            for a, b in itertools.pairwise(edges)
        ),
        len(ids),
    )
