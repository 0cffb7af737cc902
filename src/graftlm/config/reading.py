"""Reads settings from YAML: a file, and ``--set section.name=value``.

The syntax is the core of YAML 1.2 plus the booleans of 1.1 (``yes``, ``on``): ``2e-4`` and ``1e5``
are numbers, ``1:30`` is not. A duplicate key is refused, and so is a file whose aliases expand to
more values than settings can have.
"""

from __future__ import annotations

import re
import typing
from pathlib import Path
from typing import Any

import yaml

from graftlm.config.checking import shown, validate
from graftlm.config.settings import RunConfig
from graftlm.errors import ConfigError

__all__ = ["load_run_config", "parse_override", "read_tree"]

MOST_BYTES = 1_000_000
MOST_VALUES = 10_000
"""Maximum values in a settings file, with aliases expanded."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads numbers as in YAML 1.2 and refuses duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of ``node``."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"{key.value!r} is given twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, p) for tag, p in known if tag.rpartition(":")[2] in ("bool", "null", "merge")]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"^[-+]?(?:[0-9]+|[0-9][0-9_]*[0-9])$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)
_Loader.add_constructor(
    "tag:yaml.org,2002:int",
    lambda loader, node: int(str(node.value)),  # decimal, even with leading zeros
)


def read_tree(path: str | Path) -> dict[str, Any]:
    """The content of a YAML file of settings, not validated.

    Raises:
        ConfigError: the file cannot be read, or contains no settings.
    """
    file = Path(path)
    try:
        if file.exists() and not file.is_file():
            raise ConfigError(f"{shown(str(path))} is not a plain file; expected settings in YAML")
        if file.stat().st_size > MOST_BYTES:
            raise ConfigError(f"{path} has over {MOST_BYTES:,} bytes; expected settings in YAML")
        tree = parse_yaml(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"cannot read the settings file {shown(str(path))}: {said}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {_short(error)}") from error
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected settings, found a {type(tree).__name__}")
    return tree


def parse_yaml(text: str) -> Any:
    """Parse ``text`` as YAML.

    Raises:
        yaml.YAMLError: it is not YAML, nested too deeply, or too large.
    """
    try:
        tree = yaml.load(text, _Loader)
        _require_few(tree)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except (ValueError, TypeError) as error:  # an integer of 5,000 digits, a list as a key
        raise yaml.YAMLError(str(error)) from None
    return tree


def _require_few(tree: Any) -> None:
    """Refuse a tree with too many values after its aliases are expanded."""
    waiting, count = [tree], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count > MOST_VALUES:
            raise yaml.YAMLError(
                f"it stands for over {MOST_VALUES:,} values, more than settings have"
            )
        if isinstance(value, dict):
            waiting += value.keys()
            waiting += value.values()
        elif isinstance(value, list | tuple | set):
            waiting += value


def parse_override(text: str) -> tuple[list[str], Any]:
    """``"train.learning_rate=2e-4"`` → ``(["train", "learning_rate"], 2e-4)``; values are YAML."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise ConfigError(f"--set {shown(text)}: expected section.name=value, e.g. train.steps=100")
    try:
        return path.strip().split("."), parse_yaml(value)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"--set {shown(text)}: the value is not valid YAML: {_short(error)}"
        ) from error


def load_run_config(
    path: str | Path | None = None,
    overrides: typing.Sequence[tuple[list[str], Any]] = (),
) -> RunConfig:
    """Read a YAML file (if any), apply overrides in order, and validate everything at once.

    Raises:
        ConfigError: the message lists all unknown names (with similar ones) and all bad values.
    """
    tree = {} if path is None else read_tree(path)
    for keys, value in overrides:
        node = tree
        for depth, key in enumerate(keys[:-1]):
            if node.get(key) is None:
                node[key] = {}
            node = node[key]
            if not isinstance(node, dict):
                raise ConfigError(f"{shown('.'.join(keys[: depth + 1]))} is a value, not a section")
        node[keys[-1]] = value
    return validate(RunConfig, tree)


def _short(error: yaml.YAMLError) -> str:
    """The problem and its position, in one line."""
    problem = getattr(error, "problem", None) or str(error)
    mark = getattr(error, "problem_mark", None)
    where = f" (line {mark.line + 1})" if mark is not None else ""
    return f"{shown(' '.join(str(problem).split()), 200)}{where}"
