"""Private names of torch and transformers stand only in `graftlm/_compat/`."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "graftlm"
THEIRS = ("torch", "transformers", "huggingface_hub", "peft", "bitsandbytes")
INTERNAL = {"transformers.core_model_loading"}
"""Modules without an underscore that no documentation of theirs describes."""
IN_FILES = {"_load_in_4bit", "_data_files", "_pattern", "_token_id"}
"""Keys of files: a quantised model's config.json, a data set's state.json, how keys of ours end."""
MADE_BY_PYTHON = {"_abc_impl", "_backward_cls"}
"""What a metaclass writes into each class."""
PRIVATE = re.compile(r"_[a-zA-Z]\w*")
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent.name != "_compat")
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def defined_in(tree: ast.AST) -> set[str]:
    """Every private name that a file defines: functions, classes, variables, attributes."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                names.add(node.attr)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
    return names


def ours_in(tree: ast.AST) -> set[str]:
    """What a file calls `self`, `cls`, and what it imports of graftlm."""
    names = {"self", "cls"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("graftlm"):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {a.asname or "graftlm" for a in node.names if a.name.startswith("graftlm")}
    return names


OWN = set().union({"_native"}, *map(defined_in, TREES.values()))
"""What graftlm defines anywhere, and its extension module."""


def private_names(tree: ast.AST) -> Iterator[str]:
    """Private names of others that a file imports, reads, writes or asks for by a string.

    A name is graftlm's own if the same file defines it, or if any file does and it is read from
    `self` or from something of graftlm.
    """
    own, ours = defined_in(tree), ours_in(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module.partition(".")[0] in THEIRS:
                modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
                yield from (name for name in modules if name in INTERNAL or "._" in name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in THEIRS and "._" in alias.name:
                    yield alias.name
        elif isinstance(node, ast.Attribute):
            of = node.value.id if isinstance(node.value, ast.Name) else ""
            mine = node.attr in own or of in ("os", "sys") or (of in ours and node.attr in OWN)
            if PRIVATE.fullmatch(node.attr) and not mine:
                yield node.attr
        elif (  # as `getattr` and `__dict__` are asked
            isinstance(node, ast.Constant)
            and PRIVATE.fullmatch(str(node.value))
            and node.value not in own | IN_FILES
        ):
            yield str(node.value)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_private_name_of_theirs(path: Path) -> None:
    assert sorted(set(private_names(TREES[path]))) == []


def classes() -> list[Any]:
    """Every class of graftlm that derives from one of theirs."""
    found = []
    for path in FILES:
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        if name.endswith(("__init__", "__main__")) or not any(
            isinstance(node, ast.ClassDef) for node in ast.walk(TREES[path])
        ):
            continue
        module = importlib.import_module(name)
        found += [
            kind
            for kind in vars(module).values()
            if inspect.isclass(kind) and kind.__module__ == name and list(their_bases(kind))
        ]
    return found


def their_bases(kind: type) -> Iterator[type]:
    return (base for base in kind.__mro__ if base.__module__.partition(".")[0] in THEIRS)


def test_no_private_method_of_theirs_is_overridden() -> None:
    overridden = {
        f"{kind.__qualname__}.{name}"
        for kind in classes()
        for name in vars(kind)
        if PRIVATE.fullmatch(name)
        and name not in MADE_BY_PYTHON
        and any(name in vars(base) for base in their_bases(kind))
    }
    assert overridden == set()


@pytest.mark.parametrize(
    "code",
    [
        "from torch._C import x",
        "import torch._dynamo",
        "from torch.utils import _pytree",
        "from transformers.core_model_loading import ConversionOps",
        "model.config._name_or_path = 1",
        "torch._C._get_tracing_state()",
        "getattr(model, '_keep_in_fp32_modules', None)",
        "config.__dict__.pop('_is_quantized')",
        "model._frozen",  # a name that another file of graftlm defines
        "self._parameters",
    ],
)
def test_a_private_name_is_found(code: str) -> None:
    assert list(private_names(ast.parse(code)))


def test_each_file_of_compat_says_the_versions() -> None:
    for path in (PACKAGE / "_compat").glob("*.py"):
        if path.name == "__init__.py":
            continue
        words = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        assert re.search(r"[Ss]een in (torch|transformers) \d+\.\d+", words), path.name
