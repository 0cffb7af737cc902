"""The contract of an export target: a form of an adapter that other tools load.

    problems = target.check(adapter, base)      before anything is written
    figures  = target.write(adapter, base, out) whole or not at all
    proof    = target.verify(adapter, base, out) what was written, run beside the live adapter

A target registers itself under the name that `graftlm export --to` takes.
"""

from __future__ import annotations

import abc
import dataclasses
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torch import nn

from graftlm.adapters.adapter_folder import base_of
from graftlm.errors import ArtifactError, ConfigError, GraftLMError
from graftlm.registry import Registry

__all__ = [
    "ExportError",
    "ExportTarget",
    "Proof",
    "export",
    "register_target",
    "target_named",
    "targets",
]


class ExportError(GraftLMError):
    """The written files do not give the same results as the adapter."""


@dataclasses.dataclass(frozen=True)
class Proof:
    """The result of running the written files.

    Attributes:
        problems: the problems; empty if the files give the same results as the adapter.
        figures: the measurements.
    """

    problems: list[str]
    figures: dict[str, Any]


class ExportTarget(abc.ABC):
    """One form of an adapter that other tools load.

    ``adapter`` is a PEFT adapter folder or a run folder, ``base`` names its base model.

    Attributes:
        quantizations: the types in which the target can store weights; the first is the default.
        quantization: the chosen one; empty for a target without a choice.
    """

    quantizations: ClassVar[tuple[str, ...]] = ()

    def __init__(self, quantization: str | None = None) -> None:
        known = self.quantizations
        if quantization is not None and quantization not in known:
            expected = f"expected one of {', '.join(known)}" if known else "this form has no choice"
            raise ConfigError(f"quantization={quantization!r}: {expected}")
        self.quantization = quantization or (known[0] if known else "")

    @abc.abstractmethod
    def check(self, adapter: Path, base: str) -> list[str]:
        """The problems that prevent writing ``adapter`` in this form; writes nothing."""

    def rules(self, model: nn.Module) -> list[str]:
        """The rules of the target that ``model``, a base with adapters, breaks.

        They are also asked before training (``train.export_to``): names, shapes and settings may be
        read, but no weights, which may be on the meta device.
        """
        del model
        return []

    @abc.abstractmethod
    def write(self, adapter: Path, base: str, out: Path) -> dict[str, Any]:
        """Write ``out`` atomically and return figures about it."""

    @abc.abstractmethod
    def verify(self, adapter: Path, base: str, out: Path) -> Proof:
        """Open the written files and compare them with the adapter on its base."""


ClassT = TypeVar("ClassT", bound=type[ExportTarget])
_targets: Registry[type[ExportTarget]] = Registry(
    "export target",
    "graftlm.export_targets",
    "register_target",
    {
        "gguf": "graftlm.exporting.gguf.merged_file",
        "gguf-adapter": "graftlm.exporting.gguf.adapter_file",
        "mlx": "graftlm.exporting.mlx_folder",
        "ollama": "graftlm.exporting.ollama_folder",
        "peft": "graftlm.exporting.peft_folder",
        "transformers": "graftlm.exporting.transformers_folder",
        "vllm": "graftlm.exporting.vllm_folder",
    },
)


def register_target(name: str, cls: ClassT) -> ClassT:
    """Register ``cls`` as ``name``.

    Raises:
        ConfigError: another class has this name.
    """
    _targets.add(name, cls)
    return cls


def targets() -> list[str]:
    """The names of the known targets, sorted."""
    return _targets.names()


def target_named(name: str, quantization: str | None = None) -> ExportTarget:
    """The target of this name.

    Raises:
        ConfigError: there is none, or it does not store weights as ``quantization``.
    """
    return _targets.named(name)(quantization)


def export(
    adapter: str | Path,
    to: str,
    out: str | Path,
    *,
    base: str | None = None,
    quantization: str | None = None,
    verify: bool = False,
    push_to: str | None = None,
) -> dict[str, Any]:
    """Write ``adapter`` in the form of the target ``to``.

    Args:
        adapter: a PEFT adapter folder, or a run folder.
        to: the name of a registered target.
        out: the path to create.
        base: the base model; by default the one the adapter names.
        quantization: the type of the stored weights, where the target has a choice.
        verify: open the written files and compare them with the live adapter.
        push_to: a repository of the Hub to upload to afterwards.

    Returns:
        ``to``, ``base``, ``out``, the target's figures, and under ``verified`` the measurements
        (``None`` without ``verify``); with ``push_to`` the address ``uploaded``.

    Raises:
        ConfigError: there is no such target, or nothing could be uploaded to ``push_to``.
        ArtifactError: the adapter cannot be written in this form; every problem is listed.
        ExportError: the written files do not give the adapter's results. They are not removed.
        ResourceError: the disk is too small, or ``out`` exists or cannot be written.
        UploadError: the Hub refuses the upload. The files stay.
    """
    from graftlm.exporting import model_card, push  # they need what this file defines

    target = target_named(to, quantization)
    if push_to is not None:
        push.require_uploadable(push_to)
    name = base or base_of(adapter)
    if problems := target.check(Path(adapter), name):
        raise ArtifactError(f"{adapter} cannot be exported to {to}:\n" + "\n".join(problems))
    said = target.write(Path(adapter), name, Path(out))
    verified = None
    if verify:
        proof = target.verify(Path(adapter), name, Path(out))
        if proof.problems:
            raise ExportError(
                f"{out} was written, and does not do what the adapter does:\n"
                + "\n".join([*proof.problems, f"measured: {proof.figures}"])
            )
        verified = proof.figures
    report = {"to": to, "base": name, "out": str(out), **said, "verified": verified}
    if push_to is not None:
        form = to if to in model_card.FORMS else "gguf"
        beside = model_card.card_of_adapter(Path(adapter), name, form, {})
        report["uploaded"] = push.push(Path(out), push_to, beside)
    return report
