"""Compares the logits of a written model with those of the live adapter, on a few rows.

    away = ‖written − live‖ / ‖base − live‖

0: the written model equals the adapter on its base; 1: it is as far from it as the base alone.
The norms are over all logits of all rows. The rows are random token ids with a fixed seed: an
adapter changes the logits of every token, and ids need no tokenizer.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graftlm.adapters import disable_adapters
from graftlm.adapters.adapter_folder import run_settings, trained_on
from graftlm.adapters.peft_format import load_adapter
from graftlm.exporting.target import Proof
from graftlm.models import load_model

__all__ = ["LARGEST_DISTANCE", "compare"]

ROWS, LENGTH = 4, 32
LARGEST_DISTANCE = 0.25


def compare(
    adapter: Path,
    base: str,
    written: Callable[[], nn.Module],
    onto: str | None = None,
    largest: float | None = LARGEST_DISTANCE,
) -> Proof:
    """Run the live adapter, its base, and then the model that ``written`` opens.

    One model is in memory at a time.

    Args:
        adapter: a PEFT adapter folder, or a run folder.
        base: the name of its base model.
        written: opens the written model.
        onto: the weight format of the base, or ``"original"`` for no format; by default the one
            that the adapter was trained on.
        largest: the largest distance of a written model that is right; ``None`` where the type of
            its weights has errors of its own, so that the distance is a figure and no verdict.

    Returns:
        The figures ``distance`` (away, as in the file's docstring), ``update`` (‖base − live‖ /
        ‖live‖) and ``rows``; a problem if the distance is above ``largest``, or if the
        written model equals the base.
    """
    live, alone, ids = _live_and_base(adapter, base, onto or trained_on(adapter) or "original")
    gc.collect()
    there = _logits(written(), ids)
    update, distance = float((alone - live).norm()), float((there - live).norm())
    away = distance / update if update else float(distance > 0)
    figures = {"distance": away, "update": update / float(live.norm()), "rows": ROWS}
    problems = []
    if not torch.isfinite(there).all():
        problems.append("its logits are not finite")
    elif update and torch.equal(there, alone):
        problems.append("it is the base model: its logits are those without the adapter")
    elif largest is not None and away > largest:
        problems.append(
            f"its logits are {away:.3g} of the adapter's own effect away from the live adapter's; "
            f"expected at most {largest:g}. Was another base, or another form of it, "
            "merged onto? In 16 bits a small update can also be lost to rounding: see update_kept."
        )
    return Proof(problems, figures)


def _live_and_base(adapter: Path, base: str, onto: str) -> tuple[Tensor, Tensor, Tensor]:
    settings = run_settings(adapter)
    held: dict[str, Any] = {}
    if settings is not None:
        names = ("block_size", "double_quant", "dtype")
        held = {name: getattr(settings.model, name) for name in names}
    storage = None if onto == "original" else onto
    model, _ = load_model(base, quantize=storage, device="cpu", **held)
    load_adapter(model, adapter)
    vocabulary = int(model.config.get_text_config().vocab_size)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (ROWS, LENGTH), generator=draw)
    live = _logits(model, ids)
    with disable_adapters(model):
        return live, _logits(model, ids), ids


@torch.no_grad()
def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    model.train(False)
    return model(input_ids=ids).logits.float()  # type: ignore[no-any-return]
