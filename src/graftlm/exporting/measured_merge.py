"""Merges an adapter after measuring every way to do so, and proves what it wrote.

    measure the base, the live adapter and each candidate on the same rows
    take the best candidate of the kind asked for; refuse it if it keeps too little of the tune
    write it, open it again, compare it with the candidate that was measured

Nothing of a refused or interrupted merge stays. Peak memory is one layer and the activations.
From the call on, the process returns freed memory to the system.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from graftlm.adapters.adapter_folder import base_of
from graftlm.adapters.adapter_tokenizer import adapter_tokenizer, brings_tokenizer
from graftlm.adapters.same_base import require_same_base
from graftlm.errors import ConfigError, GraftLMError
from graftlm.exporting.calibrated_merge import calibrated_bytes, calibrated_kinds, calibrated_merge
from graftlm.exporting.candidates import SIXTEEN_BIT, MergeSource, open_source
from graftlm.exporting.measure import Passed, compare_passes, kept_share, pass_over
from graftlm.exporting.merge_rows import MergeRows, merge_rows
from graftlm.exporting.merged_weights import In16Bits, StoredWeights
from graftlm.exporting.model_card import card_of_adapter, write_card
from graftlm.exporting.proof import (
    EffectProof,
    count_tensors,
    prove,
    require_template,
)
from graftlm.files import atomic_folder, require_free_space, write_json
from graftlm.frozen.weight import FrozenWeight
from graftlm.models import resolve
from graftlm.models.load import tokenizer_in
from graftlm.models.named_weights import named_weights
from graftlm.models.save import save_tokenizer
from graftlm.models.stored_folder import stored_bytes, write_folder
from graftlm.models.streamed import Reader
from graftlm.system import return_freed_memory

__all__ = ["LEAST_KEPT", "REPORT_NAME", "TooLittleKeptError", "best_of", "measured_merge"]

LEAST_KEPT = 0.9
REPORT_NAME = "merge_report.json"
SMALL_FILES_BYTES = 100_000_000
PROOF_ROWS = 4
ENOUGH = 0.99
"""Where a merge that is fitted keeps this share of the tune, no other one is tried."""
AS_MUCH = 0.01
"""Shares of a tune that differ by less are not told apart by a few rows."""


class TooLittleKeptError(GraftLMError):
    """The best merge of the kind asked for loses too much of the tune."""


def measured_merge(
    adapter: str | Path,
    out: str | Path,
    *,
    to: str = SIXTEEN_BIT,
    base: str | None = None,
    onto: str | None = None,
    data: str | None = None,
    calibration: str | None = None,
    least_kept: float = LEAST_KEPT,
    force: bool = False,
    tell: Callable[[str], None] = lambda _: None,
    finish: Callable[[dict[str, Any], Path], object] = lambda *_: None,
) -> dict[str, Any]:
    """Write the best merge of a kind and return what was measured.

    Args:
        adapter: a PEFT adapter folder, or a run folder.
        out: the folder to create.
        to: ``16bit``, or a weight format with a form on disk.
        base: the base model; by default the one the adapter names.
        onto: take only the 16-bit merge onto this form of the base: ``original`` or a format.
        data: rows to compare on; see `merge_rows`.
        calibration: rows for error feedback.
        least_kept: the smallest acceptable share of the tune.
        force: write a merge that keeps less.
        tell: is told what is being done.
        finish: is called with the report and the folder before the folder gets its name.

    Returns:
        ``base``, ``trained_on``, ``live_loss``, ``base_loss``, ``candidates``, ``chosen``,
        ``onto``, ``modules``, ``left_out``, ``untied``, ``kept``, ``proof``, ``rows``, ``bytes``
        and ``out``. The same is in ``merge_report.json``.

    Raises:
        ConfigError: the kind is unknown, or cannot be made from this base.
        ArtifactError: the adapter does not fit the base, or is of another base.
        TooLittleKeptError: without ``force``: the best candidate keeps less than ``least_kept``.
        GraftLMError: the proof of effect failed.
        ResourceError: the disk is too small, or ``out`` exists or cannot be written.
    """
    return_freed_memory()
    name = base or base_of(adapter)
    folder, adapter = resolve(name).path, Path(adapter)
    require_same_base(adapter, folder)
    source = open_source(adapter, folder, name, onto, None if to == SIXTEEN_BIT else to)
    fits = to != SIXTEEN_BIT and not source.weights.stored and not source.through_merge
    need = stored_bytes(source.weights, to != SIXTEEN_BIT) + SMALL_FILES_BYTES
    need += calibrated_bytes(source) if fits else 0
    require_free_space(out, need, "Merging")
    size = sum(tensor.numel() for tensor in source.weights.empty.state_dict().values())
    rows = merge_rows(adapter, folder, data, calibration, fits, size)
    with atomic_folder(out) as temporary, tempfile.TemporaryDirectory(dir=temporary) as spill:
        measuring = _Measuring(source, rows, tell)
        kinds = measuring.kinds()
        for kind in kinds:
            measuring.measure(kind, source.reader(kind))
        calibrated: dict[str, StoredWeights] = {}
        for kind in calibrated_kinds(source) if fits else ():
            tell(f"calibrating {kind} on {len(rows.calibration)} rows")
            calibrated[kind] = calibrated_merge(kind, source, rows, Path(spill))
            measuring.measure(kind, calibrated[kind])
            if measuring.report[kind]["kept"] >= ENOUGH:
                break  # the next one would take as long again
        chosen = measuring.best(to, onto)
        measuring.forget_live()
        candidate = measuring.report[chosen]
        if candidate["kept"] < least_kept and not force:
            raise TooLittleKeptError(_too_little(chosen, candidate, least_kept, to))
        tell(f"writing {chosen}")
        place = temporary / "model"
        place.mkdir()
        reader = calibrated[chosen] if chosen in calibrated else source.reader(chosen)
        nbytes = _write(source, reader, place)
        tell("opening what was written")
        proof = measuring.prove(reader, place)
        if not force:
            proof.require(f"the merge {chosen}")
        report = {
            "base": name,
            "trained_on": source.trained,
            "trained_through_merge": source.through_merge,
            **measuring.losses(),
            "candidates": [{"kind": kind, **one} for kind, one in measuring.report.items()],
            "chosen": chosen,
            "onto": source.trained if chosen.endswith("quantized") else "original",
            "modules": len(source.updates),
            "left_out": list(source.left_out),
            "untied": source.untied is not None,
            "kept": candidate["kept"],
            "proof": proof.figures | {"problems": proof.problems},
            "rows": {
                "measured": rows.measured_from,
                "count": len(rows.measured),
                "calibration": rows.calibration_from if calibrated else None,
            },
            "bytes": nbytes,
            "out": str(out),
        }
        for file in place.iterdir():
            file.rename(temporary / file.name)
        place.rmdir()
        if brings_tokenizer(adapter):
            tokenizer = adapter_tokenizer(adapter, tokenizer_in(folder))
            save_tokenizer(tokenizer, temporary)
            require_template(temporary, tokenizer)
        write_json(temporary / REPORT_NAME, report)
        told = {"merged by": chosen, "share of the tune kept": candidate["kept"]}
        write_card(temporary, card_of_adapter(adapter, name, "merged", told))
        finish(report, temporary)
    return report


class _Measuring:
    """The passes of a merge, and what they gave."""

    def __init__(self, source: MergeSource, rows: MergeRows, tell: Callable[[str], None]) -> None:
        self._source, self._rows, self._tell = source, rows, tell
        tell("measuring the live adapter")
        self._live: Passed | None = pass_over(source.live(), rows.measured, rows.pad_id)
        tell("measuring its base")
        base = pass_over(source.weights.streamed(source.base()), rows.measured, rows.pad_id)
        self._of_live = compare_passes(self._live, self._live)
        self._of_base = compare_passes(self._live, base)
        self.report: dict[str, dict[str, Any]] = {}

    def kinds(self) -> list[str]:
        """The candidates without calibration."""
        return self._source.kinds()

    def measure(self, kind: str, reader: Reader) -> None:
        """Pass over the rows with a candidate's weights."""
        self._tell(f"measuring {kind}")
        passed = pass_over(
            self._source.weights.streamed(reader), self._rows.measured, self._rows.pad_id
        )
        assert self._live is not None, "it is forgotten when all candidates are measured"
        found = compare_passes(self._live, passed)
        kept, how = kept_share(self._of_base, self._of_live, found)
        self.report[kind] = dataclasses.asdict(found) | {"kept": kept, "kept_by": how}

    def forget_live(self) -> None:
        """Let go of the live model when all candidates are measured."""
        self._live = None

    def best(self, to: str, onto: str | None) -> str:
        """The best candidate of the kind ``to``."""
        kinds = [kind for kind in self.report if kind.startswith(f"{to}-")]
        if onto is not None and to == SIXTEEN_BIT:
            wanted = "original" if onto == "original" else "dequantized"
            kinds = [kind for kind in kinds if kind.endswith(wanted)]
        if not kinds:
            raise ConfigError(
                f"this adapter cannot be merged to {to}: the base holds its weights in "
                f"{self._source.trained} only. Possible: {', '.join(self.report)}"
            )
        return best_of({kind: self.report[kind] for kind in kinds})

    def losses(self) -> dict[str, float]:
        """The losses that all candidates are compared with."""
        return {"live_loss": self._of_live.loss, "base_loss": self._of_base.loss}

    def prove(self, reader: Reader, folder: Path) -> EffectProof:
        """Open ``folder`` and compare it with the candidate that was measured."""
        source, rows = self._source, self._rows.measured[:PROOF_ROWS]
        written = named_weights(folder)
        expected, base, found = (
            pass_over(model, rows, self._rows.pad_id)
            for model in (
                source.weights.streamed(reader),
                source.weights.streamed(source.base()),
                written.streamed(),
            )
        )
        there = written.keys.keys() | written.experts.keys()
        applied = {
            id(update.adapter): update.adapter
            for name, update in source.updates.items()
            if name in there and not update.adapter.follows
        }
        out = [name for name in source.left_out if f"{name}.bias" not in source.updates]
        counted = count_tensors(source.adapter, applied.values(), out)
        return prove(expected, base, found, counted)


def best_of(candidates: Mapping[str, Mapping[str, Any]]) -> str:
    """The candidate nearest to the live adapter of those that keep most of the tune.

    These keep as much as the one that keeps most, but for `AS_MUCH`. More than all counts as all.
    """
    kept = {kind: min(one["kept"], 1.0) for kind, one in candidates.items()}
    most = max(kept.values())
    among = [kind for kind in candidates if kept[kind] >= most - AS_MUCH]
    return min(among, key=lambda kind: candidates[kind]["kl"])


def _write(source: MergeSource, reader: Reader, place: Path) -> int:
    if not isinstance(reader, StoredWeights):
        return write_folder(place, source.weights, reader, untied=source.untied)
    plain = In16Bits(reader.exact, source.weights)

    def stored(name: str) -> FrozenWeight:
        return reader.stored(name)

    return write_folder(
        place,
        source.weights,
        plain,
        untied=source.untied,
        stored=stored,
        experts=reader.stored_experts,
        format=reader.format,
        settings=source.settings,
    )


def _too_little(kind: str, candidate: dict[str, Any], least: float, to: str) -> str:
    advice = (
        "Merge to 16 bits (--to 16bit), or train with lora.merge_aware, whose merge is exact"
        if to != SIXTEEN_BIT
        else "Was the adapter trained on another form of the base? See --onto"
    )
    return (
        f"the best merge, {kind}, keeps {candidate['kept']:.1%} of the tune (by "
        f"{candidate['kept_by']}); expected at least {least:.0%}. {advice}. --force writes it "
        "all the same."
    )
