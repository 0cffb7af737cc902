"""The report of replaced modules, stored for the life of the model."""

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
    """Modules of one class that were replaced by another class.

    Attributes:
        what: the setting for it: ``norms``, ``gated_units``, ``rotary``, ``attention``,
            ``output_layer``, ``embeddings`` or ``weight_format``.
        count: the number of modules.
        before: the original class.
        after: the new class.
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
        replaced: the replacements.
        kept: requested settings that apply to no module of this model.
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
    """Store ``report`` as long as ``model`` lives, without changing the model."""
    _reports[model] = report


def assembly_report(model: nn.Module) -> AssemblyReport | None:
    """What `graftlm.load_model` replaced in ``model``; ``None`` for a model from elsewhere."""
    return _reports.get(model)


def compared(
    what: str, before: Mapping[str, str], model: nn.Module, names: Iterable[str]
) -> list[Replacement]:
    """The replacements at ``names``, one for each pair of classes.

    Args:
        what: the setting.
        before: the class names of all modules before.
        model: the model after the replacements.
        names: the names of the replaced modules.
    """
    pairs: Any = collections.Counter(
        (before[name], type(model.get_submodule(name)).__name__) for name in names
    )
    return [Replacement(what, count, *pair) for pair, count in pairs.items()]
