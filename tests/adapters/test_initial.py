"""The values that adapters begin with are PEFT's, and each result fits the unchanged base."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
import transformers
from peft.tuners.lora.eva import get_eva_state_dict
from peft.utils.incremental_pca import IncrementalPCA as PEFTsPCA
from peft.utils.loftq_utils import _low_rank_decomposition
from torch import nn

import graftlm
from graftlm.adapters import lora_modules, merge_adapters
from graftlm.adapters.initial import orthogonal
from graftlm.adapters.initial.incremental_pca import IncrementalPCA
from graftlm.data.example import Example
from graftlm.errors import ConfigError
from tests.oracles.nf4_oracle import bnb_dequantize, bnb_quantize

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*changes the base weights:UserWarning"),
]
IDS = torch.arange(1, 25).view(2, 12)
SUBTRACTED = ["pissa", "pissa_niter_4", "olora"]
PEFTS = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear"}


def settings(init: str, **more: Any) -> graftlm.LoRAConfig:
    return graftlm.LoRAConfig(**({"rank": 4, "alpha": 12, "init": init} | more))


def plain(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def ours(folder: Path, config: graftlm.LoRAConfig, quantize: str | None = None, **more: Any) -> Any:
    model, _ = graftlm.load_model(folder, quantize=quantize)
    torch.manual_seed(0)
    graftlm.add_lora(model, config, **more)
    return model


def moved(model: nn.Module) -> None:
    """Change A and B of each adapter by the same amounts in both libraries."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)


def examples(count: int = 6) -> list[Example]:
    torch.manual_seed(3)
    drawn = torch.randint(1, 250, (count, 24)).tolist()
    return [Example(ids, [i > 8 for i in range(24)]) for ids in drawn]


@pytest.mark.parametrize("init", SUBTRACTED)
@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_subtracted_start_trains_and_is_saved_as_in_peft(
    tiny_llama: Path, tmp_path: Path, init: str, use_rslora: bool
) -> None:
    base = plain(tiny_llama)
    expected = base(IDS).logits
    model = ours(tiny_llama, settings(init, use_rslora=use_rslora))
    torch.testing.assert_close(model(IDS).logits, expected, rtol=0, atol=1e-5)
    if init == "pissa_niter_4":  # random: the start is compared through the function alone
        moved(model)
        graftlm.save_adapter(model, tmp_path / "ours")
        again = peft.PeftModel.from_pretrained(base, str(tmp_path / "ours")).eval()
        torch.testing.assert_close(again(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)
        return
    config = peft.LoraConfig(**PEFTS, use_rslora=use_rslora, init_lora_weights=init)
    theirs = peft.get_peft_model(base, config)
    theirs.save_pretrained(tmp_path / "start")
    for each in (model, theirs):
        moved(each)
    results = []
    for each in (model, theirs):
        logits = each(IDS).logits
        factors = [p for name, p in each.named_parameters() if "lora_" in name]
        results.append([logits.detach(), *torch.autograd.grad(logits.square().mean(), factors)])
    for one, peer in zip(*results, strict=True):
        torch.testing.assert_close(
            one, peer, rtol=1e-3, atol=2e-4 * float(peer.detach().abs().max())
        )
    graftlm.save_adapter(model, tmp_path / "ours")
    theirs.save_pretrained(
        tmp_path / "theirs", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    written, peers = (
        safetensors.torch.load_file(tmp_path / who / "adapter_model.safetensors")
        for who in ("ours", "theirs")
    )
    assert written.keys() == peers.keys()
    for name, tensor in written.items():
        torch.testing.assert_close(tensor, peers[name], rtol=1e-4, atol=1e-4)
    again = peft.PeftModel.from_pretrained(plain(tiny_llama), str(tmp_path / "ours")).eval()
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)
    merge_adapters(model)
    torch.testing.assert_close(model(IDS).logits, results[0][0], rtol=1e-4, atol=1e-4)


def test_orthogonal_and_gaussian_are_those_of_peft() -> None:
    layer = nn.Sequential(nn.Linear(48, 32))
    model: Any = peft.inject_adapter_in_model(
        peft.LoraConfig(r=4, target_modules=["0"], init_lora_weights="gaussian"), layer
    )
    A, B = torch.empty(4, 48), torch.empty(32, 4)
    torch.manual_seed(1)
    model[0].orthogonal_init("default")
    torch.manual_seed(1)
    orthogonal.fill(A, B)
    torch.testing.assert_close(A, model[0].lora_A["default"].weight.detach())
    torch.testing.assert_close(B, model[0].lora_B["default"].weight.detach())
    assert float((B @ A).abs().max()) < 1e-6


@pytest.mark.parametrize("init", ["gaussian", "orthogonal"])
def test_these_begin_as_no_change_and_with_dora_too(tiny_llama: Path, init: str) -> None:
    expected = plain(tiny_llama)(IDS).logits
    for variant in ("lora", "dora"):
        model = ours(tiny_llama, settings(init, variant=variant))
        torch.testing.assert_close(model(IDS).logits, expected, rtol=0, atol=2e-5)
        adapter: Any = next(iter(lora_modules(model).values()))
        size = {"gaussian": 1 / 4, "orthogonal": 0.1 * 2**-0.5}[init]
        assert float(adapter.lora_A.detach().std()) == pytest.approx(size, rel=0.3)


def test_loftq_starts_from_the_error_of_the_stored_weight(tiny_llama: Path, tmp_path: Path) -> None:
    exact = plain(tiny_llama)
    model = ours(tiny_llama, settings("loftq", alpha=4), "nf4")  # PEFT's start is for s = 1
    for name, adapter in lora_modules(model).items():
        W = exact.get_submodule(name).weight.detach()
        stored = bnb_dequantize(bnb_quantize(W, 64, True), torch.float32)
        theirs = _low_rank_decomposition(W - stored, 4)
        ours_: Any = adapter
        torch.testing.assert_close(
            ours_.lora_B @ ours_.lora_A, theirs["L"] @ theirs["R"], rtol=1e-4, atol=1e-6
        )
    by_scaling = ours(tiny_llama, settings("loftq", alpha=12), "nf4")
    torch.testing.assert_close(by_scaling(IDS).logits, model(IDS).logits, rtol=0, atol=1e-5)
    plain4, _ = graftlm.load_model(tiny_llama, quantize="nf4")
    wrong, less = ((m(IDS).logits - exact(IDS).logits).norm() for m in (plain4, model))
    assert less < wrong
    graftlm.save_adapter(model, tmp_path / "a")
    graftlm.load_adapter(plain4, tmp_path / "a")
    assert torch.equal(plain4(IDS).logits, model(IDS).logits)


def test_incremental_pca_is_that_of_peft() -> None:
    torch.manual_seed(0)
    mixed = torch.randn(40, 40) * torch.logspace(0, -2, 40)
    own, theirs = IncrementalPCA(6), PEFTsPCA(n_components=6)
    for size in (20, 9, 60):
        batch = torch.randn(size, 40) @ mixed + 0.3
        own.add(batch)
        theirs.partial_fit(batch.clone())
    torch.testing.assert_close(
        own.singular_values, theirs.singular_values_.float(), rtol=1e-4, atol=0
    )
    torch.testing.assert_close(
        own.explained, theirs.explained_variance_ratio_.float(), rtol=1e-4, atol=0
    )
    cosines = (own.directions * theirs.components_).sum(1).abs()
    assert float(cosines.min()) > 0.9999


def test_eva_finds_the_directions_and_ranks_of_peft(tiny_llama: Path) -> None:
    rows = examples()
    model = ours(tiny_llama, settings("eva"), rows=rows)
    adapters: dict[str, Any] = dict(lora_modules(model))
    ids = torch.tensor([row.input_ids for row in rows])
    labels = torch.where(torch.tensor([row.supervised for row in rows]), ids, -100)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    config = peft.LoraConfig(
        r=4,
        lora_alpha=12,
        target_modules=sorted({name.rpartition(".")[2] for name in adapters}),
        init_lora_weights="eva",
        eva_config=peft.EvaConfig(rho=2.0, tau=0.0),
    )
    theirs = get_eva_state_dict(plain(tiny_llama), [batch], config, show_progress_bar=False)
    ranks = {name: len(directions) for name, directions in theirs.items()}
    assert sum(ranks.values()) == sum(adapter.rank for adapter in adapters.values()) == 14 * 4
    assert len(set(ranks.values())) > 1
    for name, directions in theirs.items():
        if name not in adapters:
            assert len(directions) <= 1
            continue
        # Layers of one input have equal shares: which of them gets the last direction is a draw.
        assert abs(adapters[name].rank - len(directions)) <= 1
        assert adapters[name].scaling == 3
        both = min(adapters[name].rank, len(directions))
        A, known = adapters[name].lora_A[:both], directions[:both].float()
        # PEFT decomposes at random: close directions may mix, the space they span is the same.
        inside = (A.detach() @ known.T).square().sum(1)
        assert float(inside[: max(both - 1, 1)].min()) > 0.95


def test_eva_without_redistribution_keeps_the_ranks(tiny_llama: Path) -> None:
    model = ours(tiny_llama, settings("eva", eva_rho=1.0), rows=examples())
    assert {adapter.rank for adapter in lora_modules(model).values()} == {4}
    expected = plain(tiny_llama)(IDS).logits
    torch.testing.assert_close(model(IDS).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("init", ["pissa", "eva", "loftq"])
def test_a_resumed_run_ends_at_the_same_bytes(
    tiny_llama: Path, rows_file: Path, tmp_path: Path, init: str
) -> None:
    def run(**more: Any) -> Any:
        config = graftlm.RunConfig(
            out=str(tmp_path / "run"),
            method="qlora",
            model=graftlm.ModelConfig(name=str(tiny_llama), embeddings="keep"),
            data=graftlm.DataConfig(train=str(rows_file), eval=str(rows_file), max_length=64),
            lora=settings(init),
            train=graftlm.TrainConfig(steps=4, batch_size=4, learning_rate=5e-3, save_steps=2),
        )
        return graftlm.run(config, progress=False, **more)

    result = run()
    assert result.eval_loss_after < result.eval_loss_before
    file = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    whole = file.read_bytes()
    (tmp_path / "run" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "run" / "adapter")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-4")
    run(resume=True)
    assert file.read_bytes() == whole
    live, _ = graftlm.load_model(tiny_llama, quantize="nf4")
    graftlm.load_adapter(live, tmp_path / "run")
    graftlm.merge_to_folder(tmp_path / "run", tmp_path / "merged")
    merged, _ = graftlm.load_model(tmp_path / "merged", quantize=None)
    torch.testing.assert_close(merged(IDS).logits, live(IDS).logits, rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (settings("pisa"), "did you mean 'pissa'"),
        (settings("orthogonal", rank=3), "even ranks, not 3"),
        (settings("olora", variant="dora"), "not zero, which lora.variant=dora does not take"),
        (settings("eva"), "pass them, as add_lora"),
        (settings("loftq"), "use method qlora"),
    ],
)
def test_what_cannot_be_had_is_refused(
    tiny_llama: Path, config: graftlm.LoRAConfig, words: str
) -> None:
    model, _ = graftlm.load_model(tiny_llama, quantize=None)
    with pytest.raises(ConfigError, match=words):
        graftlm.add_lora(model, config)
    assert not lora_modules(model)
