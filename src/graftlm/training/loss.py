"""The loss of a causal language model on a batch: summed over the supervised tokens.

    L = − Σ_{(b,t) supervised} log softmax(W h_{b,t−1})[x_{b,t}]

The *sum* is returned, not the mean: the step divides by the supervised tokens of all its
micro-batches (see `train/step.py`). Only hidden states that predict a supervised token reach the
output layer, and their logits are never stored (`layers/linear_cross_entropy.py`).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from graftlm.data.batch import IGNORED, Batch
from graftlm.models.capabilities import capabilities
from graftlm.system.placement import placement_of
from graftlm.training.linear_cross_entropy import linear_cross_entropy

__all__ = ["causal_lm_loss"]


def causal_lm_loss(model: PreTrainedModel, batch: Batch, tolerance: float = 0.0) -> Tensor:
    """Summed cross-entropy (nats) over ``batch``'s supervised tokens, a float32 scalar.

    Args:
        model: a causal language model.
        batch: the rows.
        tolerance: probabilities up to this may be left out of the gradient; the loss is complete.
    """
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if batch.position_ids is not None:
        inputs["position_ids"] = batch.position_ids
    targets = batch.labels[:, 1:]
    supervised = targets != IGNORED
    head = capabilities(model).output_head
    if head is None:
        logits = model(**inputs, use_cache=False).logits[:, :-1][supervised]
        return F.cross_entropy(logits.float(), targets[supervised], reduction="sum")
    hidden = model.base_model(**inputs, use_cache=False).last_hidden_state[:, :-1]
    if hidden.requires_grad:
        # What this pass has kept stays in memory until the backward pass; nothing else should.
        placement_of(model).trim_heap()
    loss, _ = linear_cross_entropy(
        head.entering(hidden[supervised]),
        head.weight,
        targets[supervised],
        bias=head.linear.bias,
        softcap=head.softcap,
        logit_scale=head.scale,
        row_scale=head.row_scale,
        tolerance=tolerance,
    )
    return loss
