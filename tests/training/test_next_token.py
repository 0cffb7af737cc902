"""The next-token loss: the whole model is called, and its logits are never there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaForCausalLM

import graftlm
from graftlm.config import TrainConfig
from graftlm.data import Example, collate
from graftlm.data.batch import IGNORED, Batch
from graftlm.errors import ModelError
from graftlm.models.capabilities import capabilities
from graftlm.models.int8_embeddings import rows_in_int8
from graftlm.models.output_head import call_without_logits
from graftlm.training.evaluation import evaluate
from graftlm.training.linear_cross_entropy import linear_cross_entropy
from graftlm.training.next_token import NextToken, next_token_loss
from graftlm.training.step import train_step
from tests.oracles.model_families import FAMILIES, tiny_config, tiny_model

VOCABULARY = 260


def batch() -> Batch:
    draw = torch.Generator().manual_seed(0)
    rows = []
    for length in (24, 17, 9):
        ids = torch.randint(3, 250, (length,), generator=draw).tolist()
        rows.append(Example(ids, [i % 3 > 0 for i in range(length)]))
    return collate(rows, 0)


def loss_behind_its_back(model: Any, rows: Batch) -> Tensor:
    """The body alone is called, and the head's weight taken from it."""
    head = capabilities(model).output_head
    assert head is not None
    hidden = model.base_model(
        input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False
    ).last_hidden_state[:, :-1]
    supervised = rows.labels[:, 1:] != IGNORED
    loss, _ = linear_cross_entropy(
        head.entering(hidden[supervised]),
        head.weight,
        rows.labels[:, 1:][supervised],
        bias=head.linear.bias,
        softcap=head.softcap,
        logit_scale=head.scale,
        row_scale=head.row_scale,
        tolerance=1e-6,
    )
    return loss


def gradients(model: Any, loss: Tensor) -> list[Tensor]:
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("head", ["trains", "frozen", "int8"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_whole_model_gives_the_loss_of_its_body_and_head_to_the_last_bit(
    family: str, head: str
) -> None:
    model = tiny_model(family)
    if head == "int8":
        rows_in_int8(model)
    elif head == "frozen":
        model.get_output_embeddings().requires_grad_(False)
    loss, count = next_token_loss(model, batch(), 1e-6)
    expected = loss_behind_its_back(model, batch())
    assert count == batch().supervised_tokens
    assert torch.equal(loss, expected)
    found, behind = gradients(model, loss), gradients(model, expected)
    assert len(found) == len(behind) > 4
    assert all(torch.equal(a, b) for a, b in zip(found, behind, strict=True))
    with torch.no_grad():
        rows = batch()
        logits = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits
        dense = F.cross_entropy(logits[:, :-1].flatten(0, 1), rows.labels[:, 1:].flatten(),
                                reduction="sum", ignore_index=IGNORED)  # fmt: skip
    torch.testing.assert_close(loss.detach(), dense, rtol=1e-5, atol=1e-5)


def test_hooks_on_the_model_run_in_training_and_in_evaluation() -> None:
    model = tiny_model("llama")
    graftlm.add_lora(model, graftlm.LoRAConfig(rank=2))
    seen: list[tuple[str, Any]] = []
    model.register_forward_pre_hook(lambda *_: seen.append(("before", None)))
    model.register_forward_hook(lambda _, args, output: seen.append(("after", output)))
    capabilities(model).output_head  # noqa: B018 - probed here, with passes of its own
    seen.clear()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters)
    result = train_step(
        model, [batch(), batch()], optimizer, parameters, 1.0, NextToken(TrainConfig())
    )
    assert [name for name, _ in seen] == ["before", "after"] * 2
    assert float(seen[1][1].loss.detach()) == pytest.approx(result.loss * batch().supervised_tokens)
    seen.clear()
    rows = [Example([1, 2, 3, 4], [True] * 4)]
    evaluate(model, rows)
    assert [name for name, _ in seen] == ["before", "after"]


class Widest(TorchDispatchMode):
    """Counts logits, and dense copies of a matrix with a row for each word; views are none."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        stored = (*model.parameters(), *model.buffers())
        self.own = {tensor.untyped_storage().data_ptr() for tensor in stored}
        self.logits = self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor) or not tensor.numel() or tensor.ndim < 2:
                continue
            if tensor.untyped_storage().data_ptr() not in self.own:
                self.logits += tensor.shape[-1] == VOCABULARY
                self.copies += tensor.shape[0] == VOCABULARY
        return result


@pytest.mark.parametrize("kind", ["linear", "assembled", "int8"])
def test_the_output_layer_multiplies_nothing(kind: str, tiny_llama: Any) -> None:
    if kind == "linear":
        model: Any = tiny_model("llama")
    else:
        embeddings = "int8" if kind == "int8" else "keep"
        model, _ = graftlm.load_model(str(tiny_llama), embeddings=embeddings)
    model.requires_grad_(False)
    norm = model.model.norm.weight.requires_grad_(True)
    assert capabilities(model).output_head is not None
    with Widest(model) as widest:
        loss, _ = next_token_loss(model, batch(), 1e-6)
        loss.backward()
        with torch.no_grad():
            next_token_loss(model, batch())
    assert norm.grad is not None
    assert (widest.logits, widest.copies) == (0, 0)
    with Widest(model) as widest, torch.no_grad():
        model(input_ids=batch().input_ids)
    assert widest.logits  # the mode sees logits where there are some


class Twice(LlamaForCausalLM):
    """Calls its output layer for something else too."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.extra = self.lm_head(torch.zeros(1, 1, self.config.hidden_size))
        return output


def test_a_model_that_calls_its_output_layer_twice_keeps_its_logits() -> None:
    torch.manual_seed(0)
    model = Twice(tiny_config("llama")).eval()
    with pytest.raises(ModelError, match="2 times"):
        call_without_logits(
            model, model.lm_head, lambda hidden: hidden.sum(), input_ids=batch().input_ids
        )
    assert not model.lm_head._forward_pre_hooks
    assert not model._forward_hooks
    assert capabilities(model).output_head is None
    loss, count = next_token_loss(model, batch())
    plain = LlamaForCausalLM(tiny_config("llama")).eval()
    plain.load_state_dict(model.state_dict())
    expected, _ = next_token_loss(plain, batch())
    assert count == batch().supervised_tokens
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
