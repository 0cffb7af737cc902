"""What was put in the place of a model's own modules: a report to print, kept beside the model."""

from __future__ import annotations

import collections
import dataclasses
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

__all__ = ["AssemblyReport", "Replacement", "assembly_report", "compared", "keep_report"]

_reports: weakref.WeakKeyDictionary[nn.Module, AssemblyReport] = weakref.WeakKeyDictionary()


@dataclasses.dataclass(frozen=True)
class Replacement:
    """Modules of one class that another class stands for.

    Attributes:
        what: the setting that asks for it: ``norms``, ``gated_units``, ``attention``,
            ``output_layer``, ``embeddings`` or ``weight_format``.
        count: how many modules.
        before: the class that was there.
        after: the class that is there now.
    """

    what: str
    count: int
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.what}: {self.count} {self.before} → {self.after}"


@dataclasses.dataclass(frozen=True)
class AssemblyReport:
    """How a model differs from what transformers builds from its config.

    Attributes:
        model: the model's class.
        replaced: what stands for something else.
        kept: what was asked for, but found nothing in this model that it can stand for.
    """

    model: str
    replaced: tuple[Replacement, ...]
    kept: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.model}:", *(f"  {replacement}" for replacement in self.replaced)]
        if self.kept:
            lines.append(f"  as transformers has them: {', '.join(self.kept)}")
        return "\n".join(lines)


def keep_report(model: nn.Module, report: AssemblyReport) -> None:
    """Remember ``report`` for as long as ``model`` lives; nothing is written to the model."""
    _reports[model] = report


def assembly_report(model: nn.Module) -> AssemblyReport | None:
    """What `graftlm.load_model` replaced in ``model``; ``None`` for a model made elsewhere."""
    return _reports.get(model)


def compared(
    what: str, before: Mapping[str, str], model: nn.Module, names: Iterable[str]
) -> list[Replacement]:
    """The replacements at ``names``, a line for each pair of classes.

    Args:
        what: the setting.
        before: class names of all modules, as they were.
        model: with the modules that are there now.
        names: of the modules that were replaced.
    """
    pairs: Any = collections.Counter(
        (before[name], type(model.get_submodule(name)).__name__) for name in names
    )
    return [Replacement(what, count, *pair) for pair, count in pairs.items()]
