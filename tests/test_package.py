"""The package as a whole: what it exports, and that importing it does no work."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest

import graftlm

MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(graftlm.__path__, "graftlm.")
    if not name.rpartition(".")[2].startswith("_")
]


@pytest.mark.parametrize("name", ["graftlm", *MODULES])
def test_exported_names_are_real(name: str) -> None:
    """That `__all__` is sorted is the linter's to say (RUF022)."""
    module = importlib.import_module(name)
    for exported in module.__all__:
        assert getattr(module, exported) is not None


@pytest.mark.parametrize("code", ["import graftlm", "import graftlm.cli.app"])
def test_import_loads_no_heavy_library(code: str) -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'pyarrow', 'matplotlib'}"
    script = f"{code}; import sys; print(sorted({heavy} & sys.modules.keys()))"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
