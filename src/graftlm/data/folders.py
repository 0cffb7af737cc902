"""Chooses the files of a folder or glob that contain rows, and reports the others.

A folder may contain a data set's test files beside the training files, cache files of the
`datasets` library, and texts about the data. Test files are skipped and named; the other two kinds
contain no rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from graftlm.data.readers import READERS, suffix_of
from graftlm.errors import DataError

__all__ = ["Purpose", "chosen_files", "files_in"]

Purpose = Literal["train", "eval"]

_NOT_ROWS = {"dataset_info.json", "dataset_dict.json", "dataset_infos.json", "state.json"}
_ABOUT = re.compile(
    r"(readme|licen[cs]e|notice|changelog|contributing)\b.*\.(md|txt)", re.IGNORECASE
)
"""Names of texts about a data set, which are skipped in its folder but not if named directly."""
_SPLITS = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev", "eval", "evaluation"), "validation"),
    **dict.fromkeys(("valset", "devset", "evalset", "validate"), "validation"),
    **dict.fromkeys(("test", "testing", "testset", "heldout", "holdout"), "test"),
}
_TWO_WORDS = re.compile(r"(?<![a-z])(held|hold)[-_ ]?out(?![a-z])")
_SHOWN = 8


def files_in(folder: Path) -> tuple[Path, ...]:
    """All data files below a folder, sorted, without hidden files and notes about the data set.

    If the `datasets` library saved the data set, its ``state.json`` names the files with rows; its
    cache files (``cache-….arrow``) contain the same rows at earlier stages.

    Raises:
        DataError: there are none.
    """
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file()
        and suffix_of(file) in READERS
        and file.name not in _NOT_ROWS
        and not _ABOUT.fullmatch(file.name)
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and not _left_by_datasets(file)
    ]
    if not files:
        raise DataError(
            f"the folder {folder} holds no data file; expected one of {', '.join(sorted(READERS))}"
        )
    return tuple(files)


def _left_by_datasets(file: Path) -> bool:
    state = file.parent / "state.json"
    if state.is_file():
        try:
            listed = json.loads(state.read_text(encoding="utf-8"))["_data_files"]
            return file.name not in {item["filename"] for item in listed}
        except (OSError, ValueError, KeyError, TypeError):
            return False  # another file of that name
    kept = (file.parent / "dataset_info.json").is_file()
    return kept and file.name.startswith(("cache-", "tmp"))


def chosen_files(
    name: str, files: Sequence[Path], root: Path | None, purpose: Purpose
) -> tuple[tuple[Path, ...], list[str]]:
    """The files of the split for the purpose, and messages about the choice.

    Test and validation files are recognised by their names or folders and are not trained on. For
    measuring, validation files are preferred to test files, and test files to the others.

    Args:
        name: the user's name for the source.
        files: all data files there.
        root: the folder below which names of folders count.
        purpose: the use of the rows.

    Raises:
        DataError: there are only files of other splits to train on.
    """
    splits = {file: _split_of(file, root) for file in files}
    if purpose == "train":
        wanted: list[set[str | None]] = [{"train", None}]
    else:
        wanted = [{"validation"}, {"test"}, {"train", None}]
    chosen: tuple[Path, ...] = ()
    for some in wanted:
        chosen = chosen or tuple(file for file in files if splits[file] in some)
    if not chosen:
        raise DataError(
            f"{name} holds files to test on only ({_listed(files, root)}); to train on one, name "
            "it itself"
        )
    left = [file for file in files if file not in chosen]
    notes = []
    if len(files) > 1:
        notes.append(f"{name}: reads {len(chosen)} of {len(files)} files ({_listed(chosen, root)})")
    if left:
        why = "not trained on" if purpose == "train" else "not measured on"
        notes.append(f"{name}: {_listed(left, root)} left out, by name another split, {why}")
    return chosen, notes


def _listed(files: Iterable[Path], root: Path | None) -> str:
    names = [str(file.relative_to(root) if root else file.name) for file in files]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _split_of(file: Path, root: Path | None) -> str | None:
    """The split of a file, by a word in its name, otherwise in the names of its folders."""
    stem = file.name
    while Path(stem).suffix:
        stem = Path(stem).stem
    folders = file.relative_to(root).parts[-2::-1] if root else ()
    for part in (stem, *folders):
        words = re.split(r"[^a-z]+", _TWO_WORDS.sub("holdout", part.lower()))
        found = {_SPLITS[word] for word in words if word in _SPLITS}
        if len(found) == 1:
            return found.pop()
    return None
