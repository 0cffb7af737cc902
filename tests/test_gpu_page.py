"""The page on GPUs: each test that its list names exists, and no kernel is left out."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs/gpu.md").read_text(encoding="utf-8")


def test_each_place_that_took_the_cpu_for_granted_has_a_test_that_exists() -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) >= 16
    for file, test in named:
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert test in found, f"{file} has no {test}"


def test_what_a_card_would_run_can_be_imported_without_one() -> None:
    importlib.import_module("tests.gpu.test_on_a_card")
    importlib.import_module("benchmarks.bench_gpu")


def test_each_file_of_kernels_is_on_the_page() -> None:
    folder = TESTS.parent / "src/graftlm/kernels/triton"
    files = {path.name for path in folder.glob("*.py")}
    shared = {"__init__.py", "implementations.py", "launch.py", "stored.py"}
    assert files - shared == set(re.findall(r"`(\w+\.py)`", PAGE)) & files - shared
