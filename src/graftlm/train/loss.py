"""The loss of a causal language model on a batch: summed over the supervised tokens.

    L = − Σ_{(b,t) supervised} log softmax(logits_{b,t−1})[x_{b,t}]

The *sum* is returned, not the mean: the step divides by the supervised tokens of all its
micro-batches (see `train/step.py`).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from graftlm.data.batch import Batch

__all__ = ["causal_lm_loss"]


def causal_lm_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Summed cross-entropy (nats) over ``batch``'s supervised tokens, a float32 scalar."""
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if batch.position_ids is not None:
        inputs["position_ids"] = batch.position_ids
    logits = model(**inputs, use_cache=False).logits
    predicted, targets = logits[:, :-1], batch.labels[:, 1:]
    supervised = targets != -100
    return F.cross_entropy(predicted[supervised].float(), targets[supervised], reduction="sum")
