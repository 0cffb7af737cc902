"""Checks the answers of all examples: whether they end, and whether they differ."""

from __future__ import annotations

from collections import Counter

import numpy as np

from graftlm.config import DataConfig
from graftlm.data.audit.findings import Finding, Severity
from graftlm.data.store import Examples
from graftlm.data.tokenise import Encoder

__all__ = ["Answers"]


class Answers:
    """Statistics of one pass over the examples: the learned tokens of each, and whether it ends."""

    def __init__(self, examples: Examples, encoder: Encoder) -> None:
        end_ids = np.array(encoder.format.end_ids)
        unknown = encoder.tokenizer.unk_token_id
        self.supervised = self.unended = self.unknown = 0
        self.said: Counter[bytes] = Counter()
        self.prompts: set[bytes] = set()
        self._tokenizer = encoder.tokenizer
        for example in examples:
            ids, learned = np.asarray(example.input_ids), np.asarray(example.supervised)
            answer = ids[learned]
            self.supervised += int(learned[1:].sum())
            self.unended += not np.isin(answer[-3:], end_ids).any()
            self.said[answer.tobytes()] += 1
            first = int(learned.argmax())
            if first > 1:
                self.prompts.add(ids[:first].tobytes())
            if unknown is not None:
                self.unknown += int((ids == unknown).sum())

    def findings(self, total: int, config: DataConfig) -> list[Finding]:
        """The problems with the answers of ``total`` examples."""
        found: list[Finding] = []
        if self.unknown:
            found.append(
                Finding("unknown_tokens", "warning", self.unknown, "tokens are the unknown token: "
                        "the vocabulary cannot write these characters")
            )  # fmt: skip
        if self.unended:
            severity: Severity = "error" if self.unended > 0.1 * total else "warning"
            why = "; truncation cut it off" if config.truncation in ("right", "split") else ""
            found.append(
                Finding("no_end", severity, self.unended,
                        f"examples do not end with an end token{why}: the model does not learn "
                        "to stop there")
            )  # fmt: skip
        if total >= 10 and self.said:
            answer, count = self.said.most_common(1)[0]
            share = count / total
            if share > 0.5 and len(self.said) < total:
                severity = "error" if share >= 0.99 else "warning"
                text = self._tokenizer.decode(np.frombuffer(answer, np.int32).tolist())
                found.append(
                    Finding("constant_answer", severity, count,
                            f"examples ({share:.0%}) have the same answer, {text[:60]!r}: the "
                            "model would learn to give it to every prompt")
                )  # fmt: skip
        return found
