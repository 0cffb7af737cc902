"""What the package asks of Python itself is in the oldest version that it declares."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "graftlm"
OLDEST = (3, 10)

NEWER = {
    "asyncio": {"TaskGroup", "timeout"},
    "builtins": {"ExceptionGroup", "BaseExceptionGroup"},
    "contextlib": {"chdir"},
    "datetime": {"UTC"},
    "enum": {"StrEnum", "ReprEnum", "verify", "member", "nonmember"},
    "hashlib": {"file_digest"},
    "itertools": {"batched"},
    "tomllib": {"load", "loads"},
    "typing": {
        "LiteralString",
        "Never",
        "NotRequired",
        "Required",
        "Self",
        "TypeVarTuple",
        "Unpack",
        "assert_never",
        "assert_type",
        "dataclass_transform",
        "override",
        "reveal_type",
    },
}
"""Names of the standard library that came after 3.10."""


def names_at_run_time(tree: ast.Module) -> set[tuple[str, str]]:
    """``(module, name)`` of what is imported or read from a module, but for type checkers alone."""
    names = set()
    queue: list[ast.AST] = [tree]
    while queue:
        node = queue.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            queue += node.orelse
            continue
        if isinstance(node, ast.ImportFrom):
            names |= {(node.module or "", alias.name) for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names.add((node.value.id, node.attr))
        elif isinstance(node, ast.Name):
            names.add(("builtins", node.id))
        queue += ast.iter_child_nodes(node)
    return names


def test_the_oldest_version_is_the_declared_one() -> None:
    declared = re.search(r'requires-python = ">=3\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert declared is not None
    assert (3, int(declared[1])) == OLDEST


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_nothing_newer_is_used(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=OLDEST)
    newer = {(module, name) for module, names in NEWER.items() for name in names}
    assert not names_at_run_time(tree) & newer


def test_a_newer_name_is_noticed() -> None:
    assert ("typing", "Self") in names_at_run_time(ast.parse("from typing import Any, Self"))
    guarded = "if TYPE_CHECKING:\n    from typing import Self"
    assert ("typing", "Self") not in names_at_run_time(ast.parse(guarded))
