"""Direct preference optimisation (arXiv 2305.18290), as a user adds it: two forward passes a row.

    L = − log σ(β · [m(θ) − m(θ₀)])        m(θ) = log π_θ(chosen) − log π_θ(rejected)

θ₀ is the model before its first step; m(θ₀) is measured once and kept in the run folder.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from graftlm.extend import Example, Objective, micro_batches, next_token_loss, register_objective


@dataclass(frozen=True)
class Preference:
    chosen: Example
    rejected: Example

    def __len__(self) -> int:
        return len(self.chosen) + len(self.rejected)


@dataclass(frozen=True)
class Pair:
    chosen: object
    rejected: object
    reference: torch.Tensor
    tokens: int


@register_objective
class Preferences(Objective):
    name, beta = "preference", 0.1

    def examples_in(self, rows):
        return [side for row in rows for side in (row.chosen, row.rejected)]

    def measure(self, model, rows):
        pairs = self.batches(model, rows, {"margin": torch.zeros(len(rows))})
        return {"margin": torch.stack([self.margin(model, pair) for pair in pairs])}

    def batches(self, model, rows, measured):
        return [self.pair(model, *item) for item in zip(rows, measured["margin"], strict=True)]

    def pair(self, model, row, reference):
        (chosen,), (rejected,) = (micro_batches(model, [s]) for s in (row.chosen, row.rejected))
        return Pair(chosen, rejected, reference, len(row))

    def margin(self, model, pair):
        return next_token_loss(model, pair.rejected)[0] - next_token_loss(model, pair.chosen)[0]

    def loss(self, model, batch):
        return -F.logsigmoid(self.beta * (self.margin(model, batch) - batch.reference)), 1

    def count(self, batch):
        return 1
