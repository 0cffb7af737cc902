"""Remembers what a model or a tokenizer was read from, for the time when it is saved.

What is saved keeps the files of that folder and changes only what was changed since
(`saved_config.py`, `saved_tokenizer.py`): other releases of transformers read those files, and not
always what the installed one writes.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

__all__ = [
    "TokenizerAsRead",
    "as_base",
    "as_read",
    "folder_read",
    "remember_folder",
    "remember_tokenizer",
]

SETTINGS = (
    *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
    *("padding_side", "truncation_side", "model_max_length", "clean_up_tokenization_spaces"),
)
"""What a user can change in a tokenizer without changing its vocabulary, as its config names it."""
_RULES = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_NAME = "graftlm_read"


@dataclasses.dataclass(frozen=True, eq=False)
class TokenizerAsRead:
    """A tokenizer when it was read.

    Attributes:
        folder: where its files lie.
        backend: the object that holds its vocabulary.
        rules: how it takes text apart, and its added tokens.
        settings: the values of `SETTINGS`.
        template: its chat template.
    """

    folder: Path
    backend: Any
    rules: tuple[object, ...]
    settings: dict[str, object]
    template: Any

    @classmethod
    def of(cls, tokenizer: Any, folder: Path) -> TokenizerAsRead:
        """The present state of ``tokenizer``."""
        backend = tokenizer.backend_tokenizer
        parts = (getattr(backend, name) for name in _RULES)
        rules = [None if part is None else part.__getstate__() for part in parts]
        added = backend.get_added_tokens_decoder()
        rules += [(number, repr(token)) for number, token in sorted(added.items())]
        values = {name: getattr(tokenizer, name, None) for name in SETTINGS}
        settings: dict[str, object] = {
            name: value if value is None or isinstance(value, bool | int) else str(value)
            for name, value in values.items()
        }
        return cls(folder.absolute(), backend, tuple(rules), settings, tokenizer.chat_template)


def remember_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Record that ``tokenizer`` was read from ``folder`` and is unchanged."""
    if hasattr(tokenizer, "backend_tokenizer"):
        setattr(tokenizer, _NAME, TokenizerAsRead.of(tokenizer, folder))


def as_read(tokenizer: Any) -> TokenizerAsRead | None:
    """What `remember_tokenizer` recorded; ``None`` for a tokenizer that graftlm did not read."""
    return getattr(tokenizer, _NAME, None)


def as_base(tokenizer: Any, base: Any) -> Any:
    """``base`` with the template and the settings of ``tokenizer``, which has its vocabulary.

    A folder that is saved with it has the base's own files. Where the two take text apart in
    another way, this returns ``tokenizer``.
    """
    one, other = as_read(tokenizer), as_read(base)
    if one is None or other is None or one.rules != other.rules:
        return tokenizer
    base.chat_template = tokenizer.chat_template
    for name, value in one.settings.items():
        if value != other.settings[name]:
            setattr(base, name, value)
    return base


def remember_folder(model: Any, folder: Path) -> None:
    """Record that ``model`` was read from ``folder``."""
    setattr(model, _NAME, folder.absolute())


def folder_read(model: Any) -> Path | None:
    """The folder that a model was read from.

    Of a model that transformers read it is the folder in `name_or_path`. ``None`` for a model of
    the Hub, for one that was made in memory, and where the folder is gone.
    """
    folder = getattr(model, _NAME, None)
    if folder is None and (name := str(getattr(model, "name_or_path", "") or "")):
        folder = Path(name).expanduser()
    return folder if folder is not None and folder.is_dir() else None
