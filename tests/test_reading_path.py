"""The project files that one QLoRA step executes, and the list of them in the documents."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import graftlm
from graftlm.config import TrainConfig
from graftlm.data import Example
from graftlm.training.batching import micro_batches
from graftlm.training.next_token import NextToken
from graftlm.training.step import train_step

PACKAGE = Path(graftlm.__file__).parent
PAGE = Path(__file__).parent.parent / "docs" / "reading-path.md"


def files_of_a_step(folder: Path) -> list[str]:
    """Files of the package in the order in which the step first calls a function of theirs."""
    torch.manual_seed(0)
    model, _ = graftlm.load_model(str(folder), quantize="nf4")
    graftlm.add_lora(model, graftlm.LoRAConfig(rank=4, alpha=8))
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    batches = micro_batches(model, [Example([5 + i for i in range(40)], [True] * 40)])
    objective = NextToken(TrainConfig())
    seen: dict[str, None] = {}

    def record(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            seen.setdefault(path.relative_to(PACKAGE).as_posix())

    for recorder in (None, record):  # the first step finds out what the model can do
        before = sys.getprofile()
        sys.setprofile(recorder)
        try:
            train_step(model, batches, optimizer, parameters, 1.0, objective)
        finally:
            sys.setprofile(before)
    return list(seen)


def files_in_the_documents() -> list[str]:
    """The numbered list of `docs/reading-path.md`: ``1. `training/step.py`: …``."""
    return re.findall(r"^\d+\. `([\w/]+\.py)`", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def test_the_documents_list_the_files_of_a_step_in_order(tiny_llama: Path) -> None:
    assert files_of_a_step(tiny_llama) == files_in_the_documents()
