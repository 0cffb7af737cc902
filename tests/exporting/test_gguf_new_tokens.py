"""A GGUF of a run with new tokens: its list of tokens and its rows have them; others read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import graftlm.exporting.target as target
from graftlm.adapters import add_lora, lora_modules, lora_parameters
from graftlm.adapters.peft_format import save_adapter
from graftlm.config import LoRAConfig
from graftlm.exporting.gguf.merged_file import write_base
from graftlm.models import load_model
from tests.exporting.test_gguf import adapter_on, saved_base
from tests.oracles.merging_tokenizer import bpe_tokenizer, sentencepiece_like_tokenizer

gguf = pytest.importorskip("gguf")
NEW = ("<call>", "<result>")
TOKENIZERS = {"bpe": bpe_tokenizer, "sentencepiece": sentencepiece_like_tokenizer}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def with_new_tokens(base: Path, folder: Path) -> tuple[Path, dict[str, int], Any]:
    """An adapter that trains the rows of two new tokens: its folder, their ids, their rows."""
    torch.manual_seed(1)
    model, tokenizer = load_model(base, quantize=None)
    tokenizer.add_tokens([NEW[0]])
    tokenizer.add_special_tokens({"additional_special_tokens": [NEW[1]]})
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in NEW}
    add_lora(model, LoRAConfig(rank=4, alpha=8, trainable_token_indices=tuple(ids.values())))
    with torch.no_grad():
        for _, parameter in lora_parameters(model):
            parameter.normal_(std=0.2)
    save_adapter(model, folder, base_name=str(base), tokenizer=tokenizer)
    rows = {n: m.rows.detach() for n, m in lora_modules(model).items() if hasattr(m, "indices")}
    return folder, ids, rows


@pytest.mark.parametrize(("from_gguf", "room"), [(False, True), (False, False), (True, True)])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_file_has_the_new_tokens_and_their_rows(
    kind: str, from_gguf: bool, room: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAFTLM_CACHE", str(tmp_path / "cache"))
    tokenizer = TOKENIZERS[kind]()
    base = saved_base(tmp_path / "base", "llama", tokenizer)
    if not room:  # the table ends with the last token
        plain = AutoModelForCausalLM.from_pretrained(base)
        plain.resize_token_embeddings(len(tokenizer))
        plain.save_pretrained(base)
    if from_gguf:
        file = tmp_path / "base.gguf"
        write_base(file, adapter_on(base, tmp_path / "any"), str(base), "f32")
        base = file
    before = load_model(base, quantize=None)[0].config.vocab_size
    adapter, ids, rows = with_new_tokens(base, tmp_path / "adapter")
    size = max(before, max(ids.values()) + 1)
    # A file lists a token for each row, so that its tokenizer has no room.
    assert (size == before) == (room and not from_gguf)
    out = tmp_path / "out.gguf"
    report = target.export(adapter, "gguf", out, quantization="f32")
    assert report["proof"]["kept"] == pytest.approx(1, abs=1e-3)

    written = gguf.GGUFReader(out)
    tokens = written.fields["tokenizer.ggml.tokens"].contents()
    types = written.fields["tokenizer.ggml.token_type"].contents()
    assert len(tokens) == len(types) == size
    assert [tokens[ids[token]] for token in NEW] == list(NEW)
    assert [types[ids[token]] for token in NEW] == [4, 3]  # user defined, control
    if "tokenizer.ggml.scores" in written.fields:
        assert len(written.fields["tokenizer.ggml.scores"].contents()) == size
    assert written.fields["llama.vocab_size"].contents() == size
    stored = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in written.tensors}
    places = {"model.embed_tokens": "token_embd.weight", "lm_head": "output.weight"}
    assert rows
    for name, trained in rows.items():
        table = stored[places[name]]
        assert len(table) == size
        # The base of a file was converted to bfloat16, and a merge rounds to the base's type.
        unit = 2**-8 if from_gguf else 1e-6
        torch.testing.assert_close(table[list(ids.values())], trained, rtol=unit, atol=1e-6)

    read = AutoTokenizer.from_pretrained(tmp_path, gguf_file=out.name)
    for token in NEW:
        assert read(f"xin {token} chào", add_special_tokens=False).input_ids.count(ids[token]) == 1


def test_the_proof_misses_a_token_that_is_not_listed(tmp_path: Path) -> None:
    from graftlm.exporting.gguf.proof import prove

    base = saved_base(tmp_path / "base", "llama")
    adapter = adapter_on(base, tmp_path / "adapter")
    out = tmp_path / "out.gguf"
    target.export(adapter, "gguf", out, quantization="f32")
    from graftlm.exporting.gguf.merged_file import MergedFile
    from graftlm.models.load import load_config

    merge, plan, tokenizer = MergedFile("f32")._prepared(adapter, str(base))
    config, template = load_config(base), tokenizer.chat_template
    said = prove(out, merge, plan, config, template, {300: ("<call>", 4)}).problems
    assert said == ["the new token '<call>' is not in the file's list"]
    merge.rows = 500
    said = prove(out, merge, plan, config, template).problems
    assert "the file lists 400 tokens for 500 rows" in said
