"""The next-token objective: the loss of a causal language model over the supervised tokens.

    L = − Σ_{(b,t) supervised} log softmax(W h_{b,t−1})[x_{b,t}]

Only hidden states h that predict a supervised token reach the output layer W, and their logits are
not stored (`training/linear_cross_entropy.py`). The whole model is called, not only its body
(`models/output_head.py`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from graftlm.data.batch import Batch
from graftlm.models.capabilities import capabilities
from graftlm.models.output_head import call_without_logits
from graftlm.system.placement import placement_of
from graftlm.training.linear_cross_entropy import linear_cross_entropy
from graftlm.training.objective import Objective, register_objective

__all__ = ["NextToken", "next_token_loss"]

NO_GRADIENT = 1e-6
"""The tolerance without gradients. The loss is complete at any tolerance, fastest at this one."""


@register_objective
class NextToken(Objective):
    """Predict each supervised token from those before it."""

    name = "next_token"

    def count(self, batch: Batch) -> int:
        """The supervised tokens."""
        return batch.supervised_tokens

    def loss(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, int]:
        """Summed cross-entropy in nats, and the supervised tokens."""
        learns = torch.is_grad_enabled()
        return next_token_loss(
            model, batch, self.settings.loss_tolerance if learns else NO_GRADIENT
        )


def next_token_loss(
    model: PreTrainedModel, batch: Batch, tolerance: float = 0.0
) -> tuple[Tensor, int]:
    """Summed cross-entropy (nats, a float32 scalar) over the supervised tokens, and their number.

    Args:
        model: a causal language model.
        batch: the rows.
        tolerance: probabilities up to this may be left out of the gradient; the loss is complete.
    """
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.mask}
    if batch.position_ids is not None:
        inputs["position_ids"] = batch.position_ids
    predicts = batch.predicts
    targets = batch.labels.view(-1).index_select(0, predicts + 1)
    head = capabilities(model).output_head
    if head is None:
        logits = _rows(model(**inputs, use_cache=False).logits, predicts)
        return F.cross_entropy(logits.float(), targets, reduction="sum"), len(targets)

    def read(hidden: Tensor) -> Tensor:
        if hidden.requires_grad:
            # Tensors saved by this pass stay in memory until the backward pass. Free the others.
            placement_of(model).trim_heap()
        loss, _ = linear_cross_entropy(
            head.entering(_rows(hidden, predicts)),
            head.weight,
            targets,
            bias=head.linear.bias,
            softcap=head.softcap,
            logit_scale=head.scale,
            row_scale=head.row_scale,
            tolerance=tolerance,
        )
        return loss

    return call_without_logits(model, head.linear, read, **inputs, use_cache=False), len(targets)


def _rows(states: Tensor, positions: Tensor) -> Tensor:
    """(B, L, D), (S,) → (S, D)."""
    return states.reshape(-1, states.shape[-1]).index_select(0, positions)
