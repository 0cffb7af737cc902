"""Finds an adapter and the record of the model it was trained on."""

from __future__ import annotations

from pathlib import Path

from graftlm.adapters.peft_config import CONFIG_NAME, read_config
from graftlm.config import RunConfig, recorded_config
from graftlm.errors import ArtifactError
from graftlm.models.plain_files import require_plain_files
from graftlm.models.source import with_revision

__all__ = [
    "adapter_folder",
    "base_of",
    "recorded_settings",
    "run_folder_of",
    "run_settings",
    "trained_on",
]


def adapter_folder(path: str | Path) -> Path:
    """The folder in PEFT's format: ``path`` itself, or the adapter inside the run folder ``path``.

    Raises:
        ArtifactError: there is none.
    """
    folder = Path(path)
    for candidate in (folder, folder / "adapter"):
        if candidate.is_dir():
            require_plain_files(candidate, ArtifactError)
        if (candidate / CONFIG_NAME).is_file():
            return candidate
    if not folder.is_dir():
        raise ArtifactError(f"there is no adapter folder {folder}")
    if (folder / "config.yaml").is_file():
        raise ArtifactError(f"the run in {folder} has not finished: it holds no adapter yet")
    raise ArtifactError(
        f"{folder} is no adapter: it has no {CONFIG_NAME}. "
        "Expected a folder written by PEFT or save_adapter, or a run folder."
    )


def run_settings(path: str | Path) -> RunConfig | None:
    """The settings of the run that made the adapter, if it is still in its run folder."""
    return _settings_in(run_folder_of(path))


def run_folder_of(path: str | Path) -> Path:
    """The run folder, if the adapter is still where the run wrote it."""
    folder = adapter_folder(path).absolute()
    return folder.parents[1] if folder.parent.name == "checkpoints" else folder.parent


def recorded_settings(model: str | Path, adapter: str | Path | None = None) -> RunConfig | None:
    """The settings of the run that made ``adapter``, or else the fully fine-tuned ``model``."""
    if adapter is not None:
        return run_settings(adapter)
    folder = Path(model).absolute()
    return _settings_in(folder.parent) if folder.name == "model" else None


def _settings_in(run: Path) -> RunConfig | None:
    if not (run / "provenance.json").is_file() or not (run / "config.yaml").is_file():
        return None
    return recorded_config(run / "config.yaml")


def trained_on(path: str | Path) -> str | None:
    """The weight format of the base during training, or ``"original"``.

    ``None`` if it is not recorded.
    """
    settings = run_settings(path)
    if settings is None:
        return None
    return settings.model.weight_format if settings.method == "qlora" else "original"


def base_of(path: str | Path) -> str:
    """The name of the base model: from the run's settings, else from the adapter itself.

    Raises:
        ArtifactError: neither names one.
    """
    settings = run_settings(path)
    if settings is not None:
        return settings.model.name
    config = read_config(adapter_folder(path))
    name = with_revision(config.base_model_name_or_path or "", config.revision)
    if not name:
        raise ArtifactError(f"{path} does not name its base model. Name it yourself (base).")
    return name
