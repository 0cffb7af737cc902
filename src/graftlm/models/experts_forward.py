"""How a layer of experts computes while its experts are held; see `experts.py`.

    y_t = Σ_k p_tk · W_down,e (act(W_up,e x_t))         e = e_tk, the k-th expert of token t

The rows of an expert are gathered, so that each expert that is hit is read once. `experts_forward`
is called by transformers. The others stand for the `forward` of classes that compute by code of
their own:

    LongCat-Flash    experts from E' on give their input back, and have no weights
    Llama 4          the input is scaled, not the output: y_t = Σ_k W_down,e (act(W_up,e p_tk x_t))
    JetMoE           one projection; the rows lie in the order of the experts already
    Step 3.7         as `experts_forward`
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from graftlm._compat.experts import gated, layout_of
from graftlm.frozen.experts import DenseExperts

__all__ = ["BY_CLASS", "OwnForward", "experts_forward"]

BIASES = {
    "gate_up_proj": "gate_up_proj_bias",
    "up_proj": "up_proj_bias",
    "down_proj": "down_proj_bias",
}
"""The name of the bias [E, out] of each projection."""


def experts_forward(
    module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """The weighted sum of each token's experts.

    Args:
        module: the experts' module of transformers, one of its parameters or both held.
        hidden_states: [T, H].
        top_k_index: [T, K], the experts of each token. A number from E on stands for none.
        top_k_weights: [T, K].

    Returns:
        [T, H] in the type of ``hidden_states``.
    """
    order, counts = _by_expert(top_k_index, module.num_experts)
    counts = counts[: module.num_experts]
    order = order[: sum(counts)]
    x = hidden_states.index_select(0, order // top_k_index.shape[1])
    if getattr(module, "has_gate", True):
        x = gated(module, _product(module, "gate_up_proj", x, counts))
    else:
        x = module.act_fn(_product(module, "up_proj", x, counts))
    y = _product(module, "down_proj", x, counts)
    if getattr(module, "has_post_expert_norm", False):
        y = module.post_expert_norm(y)
    y = y * top_k_weights.reshape(-1).index_select(0, order)[:, None]
    return _summed(y, order, top_k_index).to(hidden_states.dtype)


def with_identities(
    module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """`experts_forward` for LongCat-Flash, whose last experts give their input back."""
    order, counts = _by_expert(top_k_index, module.total_experts)
    own = counts[: module.num_routed_experts]
    x = hidden_states.index_select(0, order // top_k_index.shape[1])
    routed, same = x[: sum(own)], x[sum(own) :]
    up = _product(module, "gate_up_proj", routed, own + [0] * module.zero_expert_num)
    y = torch.cat([_product(module, "down_proj", _halves(module, up), own), same])
    y = y * top_k_weights.reshape(-1).index_select(0, order)[:, None]
    return _summed(y, order, top_k_index).to(hidden_states.dtype)


def scaled_inputs(block: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    """The block around the experts of Llama 4: [B, L, H] to [B · L, H] and the router's logits.

    transformers gives each expert a row of every token, of zeros if it was not chosen. Such a row
    adds nothing and has no gradient, so it is left out here.
    """
    x = hidden_states.reshape(-1, block.hidden_dim)
    scores, logits = block.router(x)
    chosen = logits.topk(block.top_k, dim=1).indices
    order, counts = _by_expert(chosen, block.num_experts)
    scale = scores.gather(1, chosen).reshape(-1).index_select(0, order)
    y = block.experts(x.index_select(0, order // block.top_k) * scale[:, None], counts)
    return block.shared_expert(x) + _summed(y, order, chosen), logits


def sorted_rows(module: Any, x: Tensor, counts: Sequence[int]) -> Tensor:
    """The experts of Llama 4: [N, H] to [N, H], the rows in the order of the experts."""
    return _product(
        module, "down_proj", _halves(module, _product(module, "gate_up_proj", x, counts)), counts
    )


def sorted_choices(
    router: Any, hidden_states: Tensor
) -> tuple[Tensor, Tensor, Tensor, list[int], Tensor]:
    """The router of JetMoE: [N, H] to the rows' places, tokens, gates and counts, and the logits.

    transformers counts the rows of each expert by floating-point numbers, which have no values in a
    plan.
    """
    logits = router.layer(hidden_states).float()
    scores, chosen = logits.topk(router.top_k, dim=1)
    gates = torch.softmax(scores, dim=1).type_as(hidden_states)
    order, counts = _by_expert(chosen, router.num_experts)
    return order, order // router.top_k, gates.flatten()[order], counts, logits


def one_projection(module: Any, inputs: Tensor, expert_size: Sequence[int]) -> Tensor:
    """The experts of one projection of JetMoE; the rows in the order of the experts."""
    return _product(module, "weight", inputs, expert_size)


class OwnForward(NamedTuple):
    """What a class with code of its own computes by.

    Attributes:
        experts: its ``forward``.
        block: that of the module that prepares the rows.
    """

    experts: Callable[..., Any]
    block: Callable[..., Any] | None = None


BY_CLASS = {
    "Llama4TextExperts": OwnForward(sorted_rows, scaled_inputs),
    "LongcatFlashExperts": OwnForward(with_identities),
    "Step3p7Experts": OwnForward(experts_forward),
    "JetMoeParallelExperts": OwnForward(one_projection, sorted_choices),
}
"""By the name of the class, as `OWN_CODE`."""


def _by_expert(top_k_index: Tensor, experts: int) -> tuple[Tensor, list[int]]:
    """The places in ``top_k_index`` in the order of the experts, and how many each expert has."""
    chosen = top_k_index.reshape(-1)
    order = torch.argsort(chosen, stable=True)
    return order, torch.bincount(chosen, minlength=experts).tolist()


def _summed(y: Tensor, order: Tensor, top_k_index: Tensor) -> Tensor:
    """The rows ``y`` of the places ``order`` added up for each token: [T, H]."""
    tokens, chosen = top_k_index.shape
    places = y.new_zeros(tokens * chosen, y.shape[-1]).index_copy(0, order, y)
    return places.view(tokens, chosen, -1).sum(1)


def _halves(module: Any, x: Tensor) -> Tensor:
    """[N, 2 F] → [N, F]: the activation of the first half times the second."""
    gate, up = x.chunk(2, dim=-1)
    y: Tensor = module.act_fn(gate) * up
    return y


def _product(module: Any, leaf: str, x: Tensor, counts: Sequence[int]) -> Tensor:
    weight = getattr(module, leaf)
    bias = getattr(module, BIASES[leaf]) if getattr(module, "has_bias", False) else None
    if isinstance(weight, nn.Parameter):
        layout = layout_of(module)
        assert layout is not None
        weight = DenseExperts(weight, layout.transposed)
    y: Tensor = weight(x, counts, bias)
    return y
