"""AdamW over the trainable parameters, without decay on biases and norms (one-dimensional)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from graftlm.training.run import Run
from graftlm.training.schedule import learning_rate_factor

__all__ = ["adamw", "set_learning_rate"]


def adamw(run: Run, parameters: Sequence[nn.Parameter]) -> torch.optim.AdamW:
    """The optimiser with the settings of ``run``."""
    settings = run.config.train
    rate = settings.learning_rate
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": chosen, "weight_decay": decay, "peak_lr": rate}
        for chosen, decay in ((matrices, settings.weight_decay), (vectors, 0.0))
        if chosen
    ]
    betas = (settings.adam_beta1, settings.adam_beta2)
    return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=settings.adam_epsilon, fused=True)


def set_learning_rate(run: Run, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Set the learning rate of ``step`` (from 0) by the schedule of ``run``."""
    settings = run.config.train
    factor = learning_rate_factor(step, run.total_steps, settings.warmup_ratio, settings.schedule)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
