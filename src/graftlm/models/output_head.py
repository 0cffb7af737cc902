"""The output layer of a causal language model, so that the loss can avoid computing logits.

transformers' models compute ``logits = f(head(hidden))`` inside their own `forward`, and `f`
differs: Gemma 2 caps the logits, Granite and Cohere scale them, most do nothing.
`find_output_head` reads `f` from the config and compares the logits of two tokens with those of
the model. If they differ, the model's own `forward` is used. `models/capabilities.py` caches the
result.

`call_without_logits` calls the whole model, not only its body. So the model's hooks run, and so do
wrappers of its call (`model.compile()`, sharding). During this call the output layer gets an input
with no positions, so the model computes `f` on an empty tensor. The caller's value, computed from
the hidden states, becomes the model's output.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from graftlm._compat.fake import is_fake
from graftlm.errors import ModelError
from graftlm.frozen.embedding import FrozenOutput
from graftlm.frozen.weight import ScaledRows
from graftlm.models.fused import OutputLinear
from graftlm.models.probing import being_probed

__all__ = ["OutputHead", "call_without_logits", "find_output_head", "head_settings"]

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class OutputHead:
    """``logits = softcap(scale · (hidden weightᵀ + bias))``.

    Attributes:
        linear: the output layer. Its weight is read on each use, so it may be trained.
        scale: multiplies the logits.
        softcap: caps them smoothly; ``None`` for no cap.
    """

    linear: nn.Linear | FrozenOutput
    scale: float
    softcap: float | None

    @property
    def rows(self) -> ScaledRows:
        """The weight (V, D), with scales for rows and features if it is stored in 8 bits."""
        if isinstance(self.linear, FrozenOutput):
            return self.linear.rows.frozen.scaled_rows(torch.float32)
        return ScaledRows(self.linear.weight)

    @property
    def weight(self) -> Tensor:
        """(V, D), or its codes."""
        return self.rows.matrix

    @property
    def row_scale(self) -> Tensor | None:
        """The scales of the rows of the weight; ``None`` if all are 1."""
        return self.rows.row_scale

    def entering(self, hidden: Tensor) -> Tensor:
        """The hidden states, multiplied by the feature scales if there are any."""
        scale = self.rows.feature_scale
        return hidden if scale is None else hidden.float() * scale

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) → (..., V); for the check only, which asks inside a call of the layer."""
        raw = self.scale * self.linear.forward(hidden)
        return raw if self.softcap is None else self.softcap * torch.tanh(raw / self.softcap)


def call_without_logits(
    model: nn.Module, output_layer: nn.Module, read: Callable[[Tensor], Tensor], **inputs: Any
) -> Tensor:
    """Call ``model(**inputs)`` and return ``read(hidden)``.

    Args:
        model: a causal language model of transformers.
        output_layer: its output layer.
        read: takes the hidden states (..., D) that enter the output layer, and returns a tensor.
            It runs inside the model's call, where the output layer's weights are available.
        inputs: the inputs of the model.

    Raises:
        ModelError: the model did not call its output layer exactly once.
    """
    values: list[Tensor] = []

    def before_the_output_layer(_: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        (hidden,) = args
        values.append(read(hidden))
        return (hidden[:, :0],)

    def after_the_model(*_: Any) -> CausalLMOutput:
        if len(values) != 1:
            raise ModelError(
                f"{type(model).__name__} called its output layer {len(values)} times in one pass; "
                "expected once"
            )
        return CausalLMOutput(loss=values[0])

    # Before the hooks that others have put on the model's output: they see the value.
    hooks = (
        output_layer.register_forward_pre_hook(before_the_output_layer),
        model.register_forward_hook(after_the_model, prepend=True),
    )
    try:
        value: Tensor = model(**inputs).loss
    finally:
        for hook in hooks:
            hook.remove()
    return value


def find_output_head(model: PreTrainedModel) -> OutputHead | None:
    """The head of ``model``; ``None`` if only the model's forward pass gives its logits."""
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
    trained_whole = getattr(linear, "is_output_layer", False)
    if type(linear) not in (nn.Linear, OutputLinear, FrozenOutput) and not trained_whole:
        return None  # no head, or an adapted one
    return OutputHead(linear, *head_settings(model.config))


def head_settings(config: PretrainedConfig) -> tuple[float, float | None]:
    """Scale and cap of the logits, as the config says."""
    text = config.get_text_config()
    scale = float(getattr(text, "logit_scale", None) or 1.0)
    divisor = float(getattr(text, "logits_scaling", None) or 1.0)
    return scale / divisor, getattr(text, "final_logit_softcapping", None)


def _agrees(model: PreTrainedModel, head: OutputHead) -> bool:
    """Whether head and model give the same logits for two tokens."""
    with being_probed(model):
        ids = torch.tensor([[0, 1]], device=head.weight.device)
        theirs = model(input_ids=ids, use_cache=False).logits.float()
        try:
            ours = call_without_logits(
                model, head.linear, head.logits, input_ids=ids, use_cache=False
            ).float()
        except ModelError:
            return False
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-2, atol=1e-3)
