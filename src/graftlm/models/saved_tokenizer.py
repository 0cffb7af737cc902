"""Writes a tokenizer so that other releases of transformers read it, too.

transformers 5 saves a tokenizer under names that transformers 4 does not know. Therefore, while a
tokenizer has the vocabulary and the rules of the folder that it was read from, the files of that
folder are copied. Changed in them is only what was changed in the tokenizer: its chat template, a
special token, the side of padding. Any other tokenizer is written by transformers, and then given
the names that both releases know.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from graftlm.files import write_json
from graftlm.models.base_files import TokenizerAsRead, as_read, folder_read

__all__ = ["TOKENIZER_FILES", "name_for_both_releases", "write_tokenizer"]

TOKENIZER_FILES = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt"),
    *("*.model", "*.tiktoken", "chat_template.json", "*.jinja"),
)
"""Patterns of the files that a tokenizer is read from."""
_CONFIG, _SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
_TEMPLATE, _OF_PROCESSOR = "chat_template.jinja", "chat_template.json"
_FOR_ANY_MODEL = "PreTrainedTokenizerFast"
"""The class of transformers 4 for every tokenizer.json; transformers 5 knows the name."""


def write_tokenizer(tokenizer: Any, folder: Path, *, alone: bool = False) -> None:
    """Write the files of a tokenizer, with its chat template, into ``folder``.

    Args:
        tokenizer: from `load_tokenizer`, from transformers, or a `StoredTokenizer`.
        folder: an existing folder.
        alone: whether no config.json lies there. The kind of model can then not decide the class
            of the tokenizer, so its own class is written down.
    """
    _write(tokenizer, folder)
    name_for_both_releases(folder)
    kind = getattr(tokenizer, "class_name", type(tokenizer).__name__)
    config = _read(folder / _CONFIG)
    if alone and str(config.get("tokenizer_class")).removesuffix("Fast") != kind:
        _edit(folder / _CONFIG, {"tokenizer_class": kind})
        name_for_both_releases(folder)


def _write(tokenizer: Any, folder: Path) -> None:
    known = _unchanged(tokenizer)
    if known is None:
        tokenizer.save_pretrained(folder)
        return
    for pattern in TOKENIZER_FILES:
        for file in known.folder.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)
    now = TokenizerAsRead.of(tokenizer, known.folder)
    changed = {name: value for name, value in now.settings.items() if value != known.settings[name]}
    _edit(folder / _CONFIG, changed)
    _edit(
        folder / _SPECIAL,
        {name: value for name, value in changed.items() if name.endswith("token")},
    )
    if now.template != known.template:
        _edit_template(folder, now.template)


def _unchanged(tokenizer: Any) -> TokenizerAsRead | None:
    """The state in which ``tokenizer`` was read, if its vocabulary and rules are still the same."""
    from graftlm.models.load import tokenizer_in

    if not hasattr(tokenizer, "backend_tokenizer"):
        return None
    if (known := as_read(tokenizer)) is None:
        folder = folder_read(tokenizer)
        if folder is None or not (folder / _CONFIG).is_file():
            return None
        again = tokenizer_in(folder)
        known = as_read(again)
        if known is None or again.get_vocab() != tokenizer.get_vocab():
            return None
    elif tokenizer.backend_tokenizer is not known.backend or not (known.folder / _CONFIG).is_file():
        return None
    one_template = isinstance(tokenizer.chat_template, str | None)
    same_template = tokenizer.chat_template == known.template
    same_rules = TokenizerAsRead.of(tokenizer, known.folder).rules == known.rules
    return known if same_rules and (one_template or same_template) else None


def _edit(file: Path, changed: dict[str, object]) -> None:
    """Set these names in a file of JSON, where it stands; ``None`` removes a name."""
    if not file.is_file() or not changed:
        return
    said = _read(file) | changed
    removed = {name for name, value in changed.items() if value is None}
    write_json(file, {name: value for name, value in said.items() if name not in removed})


def _edit_template(folder: Path, template: str | None) -> None:
    """Put the chat template where the folder has one, else into tokenizer_config.json.

    Every release reads it there; a file of its own only later ones.
    """
    as_text = folder / _TEMPLATE
    config = _read(folder / _CONFIG)
    if "chat_template" in config or not as_text.is_file():
        _edit(folder / _CONFIG, {"chat_template": template})
    if as_text.is_file() and template is None:
        as_text.unlink()
    elif as_text.is_file() and template is not None:
        as_text.write_text(template, encoding="utf-8")
    _edit(folder / _OF_PROCESSOR, {"chat_template": template})


def name_for_both_releases(folder: Path) -> None:
    """Replace the names in tokenizer_config.json that only transformers 5 knows."""
    if not (folder / "tokenizer.json").is_file():
        return
    config = _read(folder / _CONFIG)
    changed: dict[str, object] = {}
    if config.get("tokenizer_class") == "TokenizersBackend":
        changed["tokenizer_class"] = _FOR_ANY_MODEL
    if isinstance(more := config.get("extra_special_tokens"), list):
        changed |= {"extra_special_tokens": None, "additional_special_tokens": more}
    _edit(folder / _CONFIG, changed)


def _read(file: Path) -> dict[str, Any]:
    said: Any = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return said if isinstance(said, dict) else {}
