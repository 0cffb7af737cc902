"""What only one place may know, counted over the source: 0 modules elsewhere ask it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "src" / "graftlm"


def modules_outside(*places: str) -> Iterator[tuple[str, ast.Module]]:
    """The name and the syntax tree of each module of the package outside ``places``."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith(places):
            yield name, ast.parse(path.read_text(encoding="utf-8"))


def asks_for_the_device(tree: ast.Module) -> bool:
    """Whether the module reads `x.is_cpu`, `x.is_cuda`, `device.type` or `torch.cuda`.

    Or compares something with the name of a device, `"cpu"` or `"cuda"`.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare | ast.MatchValue):
            named = (part.value for part in ast.walk(node) if isinstance(part, ast.Constant))
            if any(value in ("cpu", "cuda") for value in named):
                return True
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            if any(f"{module or ''}.{one.name}".strip(".") == "torch.cuda" for one in node.names):
                return True
        if not isinstance(node, ast.Attribute):
            continue
        owner = ast.unparse(node.value)
        if node.attr in ("is_cpu", "is_cuda") or (owner, node.attr) == ("torch", "cuda"):
            return True
        if node.attr == "type" and owner.partition("(")[0].endswith("device"):
            return True
    return False


def test_only_placement_and_kernels_ask_for_the_device() -> None:
    asking = {
        name
        for name, tree in modules_outside("kernels/", "system/placement.py", "system/devices.py")
        if asks_for_the_device(tree)
    }
    assert asking == set()


def test_a_question_for_the_device_is_recognised() -> None:
    for text in (
        "x.is_cpu",
        "x.device.type == 'cpu'",
        "device != 'cpu'",
        "device in ('cpu', 'cuda')",
        "device.type",
        "torch.device(d).type",
        "torch.cuda.is_available()",
        "from torch import cuda",
        "import torch.cuda",
    ):
        assert asks_for_the_device(ast.parse(text)), text
    for text in ("x.device", "x.type", "kind.type", "import torch", "torch.device('cpu')"):
        assert not asks_for_the_device(ast.parse(text)), text


def statements_of_text(tree: ast.Module) -> set[int]:
    """The `id` of each string that stands as a statement: docstrings, also of settings."""
    return {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def names_a_storage_format(tree: ast.Module) -> bool:
    """Whether code says NF4, or imports the module of one format; docstrings may explain it."""
    texts = statements_of_text(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute | ast.arg | ast.keyword | ast.alias):
            said = [getattr(node, field, None) for field in ("id", "attr", "arg", "name")]
        elif isinstance(node, ast.ImportFrom):
            said = [node.module]
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            said = [node.name]
        elif isinstance(node, ast.Constant) and id(node) not in texts:
            said = [node.value]
        else:
            continue
        for name in said:
            if isinstance(name, str) and ("nf4" in name.lower() or "int8_rows" in name):
                return True
    return False


# What a user reads and says: the default of a setting, the public alias, the help of two options.
NAMES_A_FORMAT_TO_THE_USER = {
    "__init__.py",
    "cli/_shared.py",
    "cli/merge.py",
    "config/settings.py",
}


def test_no_module_names_a_storage_format() -> None:
    naming = {
        name
        for name, tree in modules_outside("frozen/", "kernels/")
        if names_a_storage_format(tree)
    }
    assert naming == NAMES_A_FORMAT_TO_THE_USER


def test_a_storage_format_that_is_named_is_recognised() -> None:
    for text in (
        "from graftlm.frozen.nf4.frozen_nf4 import F",
        "from graftlm.frozen import nf4",
        "x = nf4_linear(y)",
        "isinstance(m, NF4Linear)",
        "torch.ops.graftlm.nf4_linear",
        "load(quantize='nf4')",
        "def is_nf4(): ...",
        "from graftlm.frozen.int8_rows import Int8Rows",
    ):
        assert names_a_storage_format(ast.parse(text)), text
    for text in ('"""A docstring on NF4."""', "weight_format", "embeddings == 'int8'"):
        assert not names_a_storage_format(ast.parse(text)), text
