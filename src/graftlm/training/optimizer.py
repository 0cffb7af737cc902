"""AdamW over the trainable parameters, without decay on biases and norms (one-dimensional).

LoRA+ (arXiv 2402.12354) gives B, and the vectors of an adapter, a learning rate of their own:

    η_A = η        η_B = λ η            λ  `lora.plus_ratio`

LoRA-FA (arXiv 2308.03303, section 3) trains B alone. The gradient of B is projected before AdamW
reads it, so that the change of the weight, s · dB A, is the closest to the gradient of W:

    g_B ← g_B (A Aᵀ)⁻¹ / s²
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from graftlm.adapters import lora_modules
from graftlm.adapters.lora_experts import LoRAExperts
from graftlm.adapters.lora_linear import LoRALinear
from graftlm.adapters.lora_router import LoRARouter
from graftlm.training.run import Run
from graftlm.training.schedule import learning_rate_factor

__all__ = ["adamw", "project", "quicker", "set_learning_rate"]

SMALLEST = 1e-8
"""Added to the diagonal of A Aᵀ, as in PEFT."""


def adamw(run: Run, parameters: Sequence[nn.Parameter]) -> torch.optim.AdamW:
    """The optimiser with the settings of ``run``."""
    settings, ratio = run.config.train, run.config.lora.plus_ratio
    rate = settings.learning_rate
    quick = quicker(run.model) if ratio != 1 and run.config.method != "full" else set()
    groups: list[dict[str, Any]] = []
    for is_quick in (False, True):
        own = [p for p in parameters if (id(p) in quick) is is_quick]
        matrices = [p for p in own if p.ndim > 1]
        vectors = [p for p in own if p.ndim <= 1]
        groups += [
            {"params": chosen, "weight_decay": decay, "peak_lr": rate * (ratio if is_quick else 1)}
            for chosen, decay in ((matrices, settings.weight_decay), (vectors, 0.0))
            if chosen
        ]
    betas = (settings.adam_beta1, settings.adam_beta2)
    made = torch.optim.AdamW(groups, lr=rate, betas=betas, eps=settings.adam_epsilon, fused=True)
    if run.config.lora.freeze_a and run.config.method != "full":
        made.register_step_pre_hook(lambda *_: project(run.model))
    return made


def set_learning_rate(run: Run, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Set the learning rate of ``step`` (from 0) by the schedule of ``run``."""
    settings = run.config.train
    factor = learning_rate_factor(step, run.total_steps, settings.warmup_ratio, settings.schedule)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def quicker(model: nn.Module) -> set[int]:
    """The identities of B and of the vectors of each adapter on linear layers and experts."""
    return {
        id(parameter)
        for adapter in lora_modules(model).values()
        if isinstance(adapter, LoRALinear | LoRAExperts | LoRARouter)
        for name, parameter in adapter.adapter_parameters().items()
        if name == "lora_B" or parameter.ndim == 1
    }


@torch.no_grad()
def project(model: nn.Module) -> None:
    """The projection of LoRA-FA, in place, for each adapter whose A stays."""
    for adapter in lora_modules(model).values():
        if isinstance(adapter, LoRALinear) and "lora_A" in adapter.kept:
            A, gradient = adapter.lora_A, adapter.lora_B.grad
            if gradient is not None:
                inverse = torch.linalg.pinv(A @ A.T + SMALLEST * torch.eye(len(A), device=A.device))
                gradient.copy_(gradient @ inverse / adapter.scaling**2)
