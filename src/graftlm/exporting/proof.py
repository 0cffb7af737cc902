"""Proof of effect: what was written is opened again and must do what it should, not what it was.

    update    ‖base - expected‖ / ‖expected‖        0: the adapter does nothing at all
    distance  ‖written - expected‖ / ‖base - expected‖
                                                    0: as expected; 1: as far from it as the base

over the logits of a few rows. `expected` is the model that should have been written, computed from
the adapter and its base without the files. The proof fails if the logits are those of the base, if
they are too far from the expected ones, or if tensors of the adapter were not used. It names the
first decoder layer that differs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from graftlm.adapters.adapter import Adapter
from graftlm.adapters.adapter_folder import adapter_folder
from graftlm.adapters.peft_config import read_config
from graftlm.adapters.peft_fit import PREFIX
from graftlm.adapters.peft_trained import of_trained_part
from graftlm.adapters.variant_of_file import WEIGHTS_NAME, suffix_patterns
from graftlm.errors import GraftLMError
from graftlm.exporting.measure import Passed
from graftlm.models.load import tokenizer_in

__all__ = [
    "EffectProof",
    "TensorCount",
    "count_tensors",
    "prove",
    "require_template",
]

LARGEST_DISTANCE = 0.01
PROOF_POSITIONS = 64


class NoEffectError(GraftLMError):
    """What was written does not do what it should."""


@dataclasses.dataclass(frozen=True)
class TensorCount:
    """The tensors of an adapter: in its file, used, and left over."""

    expected: int
    applied: int

    @property
    def left_over(self) -> int:
        """Tensors in the file that were not used."""
        return self.expected - self.applied


@dataclasses.dataclass(frozen=True)
class EffectProof:
    """The result of a proof; see the file's docstring.

    Attributes:
        problems: empty if the proof succeeded.
        figures: the measurements.
    """

    problems: list[str]
    figures: dict[str, Any]

    def require(self, what: str) -> None:
        """Raise unless the proof succeeded.

        Raises:
            NoEffectError: the message names ``what`` and every problem.
        """
        if self.problems:
            raise NoEffectError(
                f"{what} does not do what the adapter does, so it is not kept:\n"
                + "\n".join(self.problems)
            )


def prove(
    expected: Passed,
    base: Passed,
    written: Passed,
    tensors: TensorCount,
    largest: float = LARGEST_DISTANCE,
) -> EffectProof:
    """Compare what was written with what should have been, and with the base.

    All three passed over the same rows.

    Args:
        expected: the model that should have been written.
        base: the base without the adapter.
        written: the written files, opened again.
        tensors: of the adapter, how many were used.
        largest: the largest acceptable ``distance``.
    """
    should, before, found = (_logits(one) for one in (expected, base, written))
    update, distance = float((before - should).norm()), float((found - should).norm())
    away = distance / update if update else float(distance > 0)
    figures = {
        "tensors_expected": tensors.expected,
        "tensors_applied": tensors.applied,
        "tensors_left_over": tensors.left_over,
        "update": update / float(should.norm()),
        "distance": away,
        "positions": len(should),
    }
    problems = []
    if tensors.left_over:
        problems.append(
            f"{tensors.left_over} of the adapter's {tensors.expected} tensors were not applied"
        )
    if not torch.isfinite(found).all():
        problems.append(f"its logits are not finite{_first_layer(expected, written)}")
    elif not update:
        problems.append(
            "the adapter changes nothing: with it and without, the logits are the same. Is it "
            "trained? Its B matrices are zero before the first step"
        )
    elif torch.equal(found, before):
        problems.append(
            "it is the base model: its logits are those without the adapter"
            f"{_first_layer(expected, written)}"
        )
    elif not away <= largest:
        problems.append(
            f"its logits are {away:.3g} of the adapter's own effect away from what they should "
            f"be; expected at most {largest:g}{_first_layer(expected, written)}"
        )
    return EffectProof(problems, figures)


def count_tensors(
    adapter: Path, applied: Iterable[Adapter], left_out: Iterable[str] = ()
) -> TensorCount:
    """Count the tensors in the adapter's file; untrained copies of embeddings do not count.

    Args:
        adapter: a PEFT adapter folder, or a run folder.
        applied: the adapters whose update was written.
        left_out: the modules whose update has no effect; their tensors do not count.
    """
    folder = adapter_folder(adapter)
    config = read_config(folder)
    patterns = suffix_patterns(config.variant).values()
    with safetensors.safe_open(folder / WEIGHTS_NAME, "pt") as file:
        keys = list(file.keys())
    matches = {key: m for key in keys for p in patterns if (m := p.fullmatch(key)) is not None}
    without = set(left_out)
    own = [
        key for key, match in matches.items() if match["module"].removeprefix(PREFIX) not in without
    ]
    own += [key for key in keys if key not in matches and of_trained_part(key, config)]
    return TensorCount(len(own), sum(len(one.peft_state()) for one in applied))


def _logits(passed: Passed) -> Tensor:
    return passed.model.logits(passed.hidden[:PROOF_POSITIONS])


def _first_layer(expected: Passed, written: Passed) -> str:
    """The first decoder layer whose output differs, for a message."""
    for name, output in expected.layers.items():
        other = written.layers[name]
        if not torch.allclose(output, other, rtol=1e-3, atol=1e-4 * float(output.abs().max())):
            return f"; the first layer that differs is {name}"
    return "; all decoder layers agree, so the output layer differs"


def require_template(folder: Path, tokenizer: Any) -> None:
    """Open the tokenizer in ``folder``, and refuse it without the chat template of ``tokenizer``.

    Raises:
        GraftLMError: the template of the training is not there.
    """
    if getattr(tokenizer_in(folder), "chat_template", None) != tokenizer.chat_template:
        raise NoEffectError(
            "the merge was not written: its tokenizer has not the chat template of the training, "
            "so other tools would ask in another form"
        )
