"""The output layer of a causal language model, found so that its logits need not be computed.

transformers' models compute ``logits = f(head(hidden))`` inside their own `forward`, and `f`
differs: Gemma 2 caps the logits, Granite and Cohere scale them, most do nothing.
`find_output_head` reads `f` from the config and then compares two tokens' logits with the model's
own. A model whose logits differ keeps its own forward. `models/capabilities.py` keeps the answer.
"""

from __future__ import annotations

import dataclasses
import logging

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from graftlm._compat.fake import is_fake
from graftlm.frozen.embedding import FrozenOutput
from graftlm.frozen.weight import ScaledRows
from graftlm.models.fused.output_linear import OutputLinear
from graftlm.models.probing import being_probed

__all__ = ["OutputHead", "find_output_head"]

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class OutputHead:
    """``logits = softcap(scale · (hidden weightᵀ + bias))``.

    Attributes:
        linear: the output layer: its weight is read when needed, so that it may train.
        scale: multiplies the logits.
        softcap: caps them smoothly; ``None`` for no cap.
    """

    linear: nn.Linear | FrozenOutput
    scale: float
    softcap: float | None

    @property
    def rows(self) -> ScaledRows:
        """The weight (V, D), with the scales of its rows and features if it is stored so."""
        if isinstance(self.linear, FrozenOutput):
            return self.linear.rows.frozen.scaled_rows(torch.float32)
        return ScaledRows(self.linear.weight)

    @property
    def weight(self) -> Tensor:
        """(V, D), or its codes."""
        return self.rows.matrix

    @property
    def row_scale(self) -> Tensor | None:
        """What multiplies the rows of the weight; ``None`` for ones."""
        return self.rows.row_scale

    def entering(self, hidden: Tensor) -> Tensor:
        """What the rows are multiplied with: the hidden states, scaled where features are."""
        scale = self.rows.feature_scale
        return hidden if scale is None else hidden.float() * scale

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) → (..., V); for the check only."""
        raw = self.scale * self.linear(hidden)
        return raw if self.softcap is None else self.softcap * torch.tanh(raw / self.softcap)


def find_output_head(model: PreTrainedModel) -> OutputHead | None:
    """The head of ``model``, or ``None`` when its logits must come from its own forward pass."""
    head = _from_config(model)
    if head is None or is_fake(head.weight):
        return head  # a fake model has no values to compare; a plan assumes the config is right
    if not _agrees(model, head):
        logger.warning(
            "%s computes its logits in a way of its own; training keeps them in memory",
            type(model).__name__,
        )
        return None
    return head


def _from_config(model: PreTrainedModel) -> OutputHead | None:
    linear = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if type(linear) not in (nn.Linear, OutputLinear, FrozenOutput) or model.base_model is model:
        return None  # no head, an adapted one, or a model without a body of its own
    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    divisor = float(getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return OutputHead(linear, scale / divisor, softcap)


def _agrees(model: PreTrainedModel, head: OutputHead) -> bool:
    """Whether head and model give the same logits for two tokens."""
    with being_probed(model):
        ids = torch.tensor([[0, 1]], device=head.weight.device)
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        theirs = model(input_ids=ids, use_cache=False).logits.float()
        ours = head.logits(hidden).float()
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-2, atol=1e-3)
