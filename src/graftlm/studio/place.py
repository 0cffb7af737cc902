"""Where the studio keeps its files, and which names it accepts.

RUNS/NAME/               a run folder, by the studio or by the command line
RUNS/exports/NAME/       what merges and exports wrote
RUNS/.studio/uploads/    the rows that were dropped on the page
RUNS/.studio/jobs/ID/    one command: its words, output and exit code
RUNS/.studio/work/       the empty folder that commands run in
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import secrets
from pathlib import Path

from graftlm.cache import cache_folder
from graftlm.errors import ConfigError
from graftlm.files import disk_errors_named

__all__ = ["BUILT_IN", "Place", "kept_token"]

BUILT_IN = ("gemma-3-270m",)
"""The built-in models. Their own module loads torch, which the server does not need."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HUB_ID = re.compile(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}", re.ASCII)
_RESERVED = {"exports"}


@dataclasses.dataclass(frozen=True)
class Place:
    """The folders of one studio.

    Attributes:
        runs: the runs folder, absolute.
        models: a folder of model folders and `.gguf` files that may be chosen, if given.
    """

    runs: Path
    models: Path | None = None

    @property
    def uploads(self) -> Path:
        """The folder of the uploaded rows."""
        return self.runs / ".studio" / "uploads"

    @property
    def jobs(self) -> Path:
        """The folder of the commands that were started."""
        return self.runs / ".studio" / "jobs"

    @property
    def work(self) -> Path:
        """The empty folder that commands run in, where no relative name means anything."""
        return self.runs / ".studio" / "work"

    @property
    def exports(self) -> Path:
        """The folder of merged and exported models."""
        return self.runs / "exports"

    def prepare(self) -> None:
        """Create the folders; those of the studio are for this user only."""
        with disk_errors_named(self.runs):
            self.runs.mkdir(parents=True, exist_ok=True)
            for folder in (self.uploads.parent, self.uploads, self.jobs, self.work):
                folder.mkdir(mode=0o700, exist_ok=True)

    def new_run(self, name: str) -> Path:
        """The folder of a run that does not exist yet.

        Raises:
            ConfigError: the name is no plain name, or is taken.
        """
        return self._new(self.runs, name)

    def new_export(self, name: str) -> Path:
        """The path of an export that does not exist yet."""
        return self._new(self.exports, name)

    def model(self, name: str) -> str:
        """What the commands call the model ``name``: a built-in, a Hub id, or a path.

        Raises:
            ConfigError: the name is none of these, or names a file outside the chosen folders.
        """
        if name in BUILT_IN or _HUB_ID.fullmatch(name):
            return name
        found = self.local_models().get(name)
        if found is None:
            raise ConfigError(
                f"model {name!r}: expected {', '.join(BUILT_IN)}, a Hub id such as owner/name, or "
                "a model of the folder that `graftlm studio --models FOLDER` names"
            )
        return str(found)

    def local_models(self) -> dict[str, Path]:
        """Name → path of the models in the models folder and of the merged models."""
        found: dict[str, Path] = {}
        for parent in filter(None, (self.models, self.exports)):
            with contextlib.suppress(OSError):  # the folder may not exist yet
                for path in sorted(parent.iterdir()):
                    if (path / "config.json").is_file() or path.suffix == ".gguf":
                        found.setdefault(path.name, path.absolute())
        return found

    @staticmethod
    def _new(parent: Path, name: str) -> Path:
        if not _NAME.fullmatch(name) or name in _RESERVED:
            raise ConfigError(
                f"name {name!r}: expected letters, digits, dots, dashes and underscores, with a "
                "letter or digit first, at most 64"
            )
        if (parent / name).exists():
            raise ConfigError(f"{parent / name} exists already; choose another name")
        return parent / name


def kept_token() -> str:
    """The token of this user's studios; it is made once, so that an open page outlives a restart.

    The file can be read by this user only.
    """
    path = cache_folder() / "studio-token"
    with disk_errors_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(secrets.token_urlsafe(32))
        token = path.read_text(encoding="ascii").strip()
    if len(token) < 32:
        raise ConfigError(f"{path} holds no token; remove it, and the next start makes one")
    return token
