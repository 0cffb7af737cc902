"""The tests that need a GPU: `make test-gpu` runs them, and fails where there is none."""

from __future__ import annotations

import os

import pytest
import torch

if "GRAFTLM_TEST_GPU" not in os.environ:
    collect_ignore_glob = ["test_*"]


@pytest.fixture(scope="session", autouse=True)
def card() -> str:
    """The name of the device, such as ``cuda:0``."""
    from graftlm.system.devices import accelerators, unusable_gpu

    found = accelerators()
    if not found:
        pytest.exit(f"make test-gpu needs a GPU: {unusable_gpu() or 'torch finds none'}", 1)
    assert torch.accelerator.is_available()
    return str(found[0])
