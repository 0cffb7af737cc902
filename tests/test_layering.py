"""The layers of the package: who may import whom, read from the source itself."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "graftlm"

# A module imports only from layers below its own.
LAYERS = [
    {"cache", "config", "errors", "files", "registry", "system"},
    {"_compat"},
    {"kernels"},
    {"frozen"},
    {"data"},
    {"models"},
    {"adapters"},
    {"exporting"},
    {"distributed"},
    {"training"},
    {"planning"},
    {"report"},
    {"serve"},
    {"studio"},
    {"demo"},
    {"api"},
    {"cli"},
    {"__main__"},
    {"extend"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def unit_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_units(path: Path) -> set[str]:
    """First names after `graftlm.` in every import of the file, lazy ones included."""
    units = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "graftlm" and len(parts) > 1:
                units.add(parts[1])
    return units & LEVEL.keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_only_from_lower_layers(path: Path) -> None:
    unit = unit_of(path)
    for imported in imported_units(path) - {unit}:
        if LEVEL[imported] == LEVEL[unit] == 0:
            continue
        assert LEVEL[imported] < LEVEL[unit], f"{unit} may not import {imported}"


def test_every_folder_of_the_package_has_a_layer() -> None:
    assert {unit_of(path) for path in MODULES} <= LEVEL.keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_file_stays_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


def test_step_is_read_downwards_in_five_files() -> None:
    chain = [
        "training/loop.py",
        "training/step.py",
        "adapters/lora_linear.py",
        "frozen/linear.py",
        "kernels/nf4/dequantize.py",
    ]
    levels = [LEVEL[unit_of(PACKAGE / name)] for name in chain]
    assert levels == sorted(levels, reverse=True)
    for name in chain:
        assert (PACKAGE / name).is_file()
