"""The runs of a comparison: each method, rank and seed once, with all else equal."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

from graftlm.config import RunConfig, shown
from graftlm.errors import ConfigError
from graftlm.training.resolve import with_method

__all__ = ["MEASURED", "METHODS", "Job", "Variant", "jobs", "variants"]

MEASURED = "measured.json"
"""The file in a run folder with the comparison's measurements of its result."""

Method = Literal["full", "lora", "qlora"]
METHODS: tuple[Method, ...] = ("full", "lora", "qlora")
NAMES = {"full": "Full", "lora": "LoRA", "qlora": "QLoRA"}


MOST_RANK, MOST_RANKS = 1_000_000, 100
"""The bound of the setting `lora.rank`, and how many ranks a table can show."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """A column of the comparison.

    Attributes:
        method: how it trains.
        rank: of its adapters; ``None`` for full fine-tuning, which has none.
        several_ranks: whether the name must include the rank.
    """

    method: Method
    rank: int | None
    several_ranks: bool = False

    @property
    def name(self) -> str:
        """The name for people: ``QLoRA``, ``LoRA rank 8``."""
        rank = f" rank {self.rank}" if self.several_ranks and self.rank else ""
        return f"{NAMES[self.method]}{rank}"

    @property
    def folder(self) -> str:
        """The name of the folder: ``qlora-r16``, ``full``."""
        return self.method if self.rank is None else f"{self.method}-r{self.rank}"


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of the comparison."""

    variant: Variant
    seed: int
    config: RunConfig

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.config.out)


def variants(methods: Sequence[str], ranks: Sequence[int]) -> list[Variant]:
    """Every method with every rank it can have, in the requested order.

    Raises:
        ConfigError: a method or rank is invalid; the message lists all problems.
    """
    problems = [
        f"method {name!r}: expected some of {', '.join(METHODS)}"
        for name in methods
        if name not in METHODS
    ]
    problems += [
        f"rank {shown(rank)}: expected 1 to {MOST_RANK:,}"
        for rank in ranks
        if not 1 <= rank <= MOST_RANK
    ][:5]
    if len(set(ranks)) > MOST_RANKS:
        problems.append(f"{len(set(ranks)):,} ranks: expected at most {MOST_RANKS}")
    if not methods:
        problems.append(f"no method to compare: expected some of {', '.join(METHODS)}")
    if problems:
        raise ConfigError(problems)
    distinct = list(dict.fromkeys(ranks))
    found = []
    for method in cast("list[Method]", list(dict.fromkeys(methods))):
        usable: list[int | None] = [None] if method == "full" else [*distinct]
        found += [Variant(method, rank, len(distinct) > 1) for rank in usable]
    return found


def jobs(base: RunConfig, columns: Sequence[Variant], seeds: int, out: Path) -> list[Job]:
    """Every run: each variant with the same ``seeds`` seeds, counted from the settings' own.

    One seed draws the same batches for every method, so that all see the same tokens in the same
    order. All variants of one seed come first: a comparison that is stopped has whole seeds.
    """
    found = []
    for seed in range(base.train.seed, base.train.seed + seeds):
        for variant in columns:
            lora = base.lora
            if variant.rank is not None and variant.rank != lora.rank:
                # Keep the requested strength of the update, alpha / rank.
                alpha = lora.alpha * variant.rank / lora.rank
                lora = lora.model_copy(update={"rank": variant.rank, "alpha": alpha})
            config = with_method(base, variant.method).model_copy(
                update={
                    "out": str(out / "runs" / f"{variant.folder}-seed{seed}"),
                    "lora": lora,
                    "train": base.train.model_copy(update={"seed": seed}),
                }
            )
            found.append(Job(variant, seed, config))
    return found
