"""Telling PyTorch of an operator: its schema, what carries it out, its shapes without data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["LIBRARY", "define"]

LIBRARY = torch.library.Library("graftlm", "DEF")  # type: ignore[no-untyped-call]


def define(
    schema: str,
    run: Callable[..., Any],
    fake: Callable[..., Any],
    backend: str = "CompositeExplicitAutograd",
) -> None:
    """Define ``graftlm::<name>``.

    Args:
        schema: as `torch.library` writes it, beginning with the name.
        run: carries it out.
        fake: gives outputs of the right shapes and types for inputs without values.
        backend: the dispatch key ``run`` is for; by default every device.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema)  # type: ignore[no-untyped-call]
    LIBRARY.impl(name, run, backend)  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"graftlm::{name}", fake, lib=LIBRARY)
