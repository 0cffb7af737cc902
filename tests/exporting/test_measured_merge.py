"""`measured_merge`: every way measured, the best written, and the proof that it has an effect."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from graftlm.adapters import add_lora, lora_modules, lora_parameters
from graftlm.adapters.adapter import Adapter
from graftlm.adapters.adapter_folder import adapter_folder
from graftlm.adapters.peft_format import save_adapter
from graftlm.cli import main
from graftlm.config import LoRAConfig, ModelConfig, RunConfig
from graftlm.errors import ArtifactError, ConfigError, GraftLMError
from graftlm.exporting import measured_merge as module
from graftlm.exporting.calibrated_merge import calibrated_kinds, calibrated_merge
from graftlm.exporting.candidates import open_source
from graftlm.exporting.measured_merge import best_of, measured_merge
from graftlm.exporting.merge_rows import merge_rows
from graftlm.exporting.merged_weights import MergedWeights
from graftlm.files import sha256_of_files
from graftlm.frozen.linear import FrozenLinear
from graftlm.models import load_model
from tests.oracles.mapped_pages import resident_pages
from tests.oracles.model_families import tiny_model

IDS = torch.arange(1, 25).view(2, 12)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    for family in ("llama", "llama-tied", "gemma3", "gpt2"):
        tiny_model(family).save_pretrained(root / family, max_shard_size="100KB")
        tiny_tokenizer.save_pretrained(root / family)
    return {folder.name: folder for folder in root.iterdir()}


def trained(
    folder: Path, base: Path, std: float = 0.3, targets: Any = "all-linear", **model: Any
) -> Path:
    """A run folder whose adapter changes what the base says."""
    loaded, tokenizer = load_model(base, quantize=None)
    torch.manual_seed(1)
    add_lora(loaded, LoRAConfig(rank=4, alpha=8, targets=targets))
    with torch.no_grad():
        for name, parameter in lora_parameters(loaded):
            parameter.normal_(std=std if "lora_B" in name or "embedding_A" in name else 0.3)
    save_adapter(loaded, folder / "adapter", base_name=str(base), tokenizer=tokenizer)
    as_run(folder, base, **model)
    return folder


def as_run(folder: Path, base: Path, lora: LoRAConfig | None = None, **model: Any) -> None:
    config = RunConfig(
        method="qlora", model=ModelConfig(name=str(base), **model), lora=lora or LoRAConfig()
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    record = {"base": {"sha256": sha256_of_files(sorted(base.glob("*.safetensors")))}}
    (folder / "provenance.json").write_text(json.dumps(record))


def merged(run: Path, out: Path, **arguments: Any) -> dict[str, Any]:
    return measured_merge(run, out, least_kept=0.0, **arguments)


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's list of mapped pages")
def test_the_adapter_is_read_from_its_file_each_time(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    run = trained(tmp_path / "run", bases["llama"])
    source = open_source(run, bases["llama"], "llama")
    live = source.live()
    once = {place.adapter: place.place(name) for name, place in source.updates.items()}
    for adapter, place in once.items():
        same = live.model.get_submodule(place)
        assert isinstance(same, Adapter)
        for name, parameter in same.adapter_parameters().items():
            assert parameter.data_ptr() == adapter.adapter_parameters()[name].data_ptr()
            assert float(parameter.detach().abs().sum())
    assert resident_pages(run)
    live.run(IDS)
    assert resident_pages(run) == 0
    for name in source.updates:
        source.reader("16bit-original")(name)
    assert resident_pages(run) == 0


def test_every_way_is_measured_and_the_best_of_the_kind_is_written(
    bases: dict[str, Path], tmp_path: Path, rows_file: Path
) -> None:
    run = trained(tmp_path / "run", bases["llama"])
    report = merged(run, tmp_path / "out", data=str(rows_file))
    found = {one["kind"]: one for one in report["candidates"]}
    assert list(found) == ["16bit-original", "16bit-dequantized", "nf4-requantized", "nf4-original"]
    assert report["chosen"] == "16bit-dequantized"
    best = found["16bit-dequantized"]
    assert best["kl"] < 1e-6 < found["16bit-original"]["kl"]
    assert best["agreement"] == 1.0
    assert best["kept"] == pytest.approx(1, abs=1e-3)
    assert max(best["layers"].values()) < 1e-4 < min(found["nf4-original"]["layers"].values())
    assert found["nf4-original"]["kl"] < found["nf4-requantized"]["kl"] * 1.5
    assert json.loads((tmp_path / "out" / "merge_report.json").read_text()) == report
    with torch.no_grad():
        written = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()(IDS).logits
        live, _ = load_model(bases["llama"], quantize="nf4")
        from graftlm.adapters.peft_format import load_adapter

        load_adapter(live, run)
        torch.testing.assert_close(written, live(IDS).logits, rtol=0, atol=1e-4)


def test_the_proof_counts_the_tensors_and_compares_the_files(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    run = trained(tmp_path / "run", bases["gemma3"])
    proof = merged(run, tmp_path / "out")["proof"]
    count = len(load_file(run / "adapter" / "adapter_model.safetensors"))
    assert (proof["tensors_expected"], proof["tensors_applied"]) == (count, count)
    assert proof["tensors_left_over"] == 0
    assert proof["distance"] < 1e-4
    assert proof["update"] > 0.01


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gemma3", "gpt2"])
def test_error_feedback_is_nearest_of_the_4_bit_merges_and_opens_as_measured(
    family: str, bases: dict[str, Path], tmp_path: Path, rows_file: Path
) -> None:
    run = trained(tmp_path / "run", bases[family])
    report = merged(
        run, tmp_path / "out", to="nf4", data=str(rows_file), calibration=str(rows_file)
    )
    found = {one["kind"]: one["kl"] for one in report["candidates"]}
    assert report["chosen"] in ("nf4-feedback", "nf4-feedback-original")
    assert found[report["chosen"]] < 0.7 * min(found["nf4-original"], found["nf4-requantized"])
    assert report["proof"]["distance"] < 1e-3
    model, _ = load_model(tmp_path / "out", quantize=None)
    held = [m.frozen.format for m in model.modules() if isinstance(m, FrozenLinear)]
    assert held
    assert set(held) == {"nf4"}
    assert not [path for path in (tmp_path / "out").iterdir() if path.is_dir()]


def test_after_qlora_error_feedback_has_two_aims(
    bases: dict[str, Path], tmp_path: Path, rows_file: Path
) -> None:
    """The live model, or the original weights and the update: each is nearer to its own aim."""
    run = trained(tmp_path / "run", bases["llama"])
    source = open_source(run, bases["llama"], "llama", to="nf4")
    rows = merge_rows(run, bases["llama"], str(rows_file), str(rows_file))
    aims = {"nf4-feedback": source.base(), "nf4-feedback-original": source.original()}
    assert calibrated_kinds(source) == list(aims)
    ids = torch.tensor([[int(token) for row in rows.measured for token in row.input_ids]])
    hidden = {
        kind: source.weights.streamed(MergedWeights(base, source.updates)).run(ids)[0]
        for kind, base in aims.items()
    }
    for kind in aims:
        (tmp_path / kind).mkdir()
        made = calibrated_merge(kind, source, rows, tmp_path / kind)
        found, _ = source.weights.streamed(made).run(ids)
        distance = {aim: float((found - wanted).norm()) for aim, wanted in hidden.items()}
        assert min(distance, key=distance.__getitem__) == kind, distance


def test_the_best_keeps_most_and_is_nearest_of_those_that_keep_as_much() -> None:
    def of(kept: float, kl: float) -> dict[str, float]:
        return {"kept": kept, "kl": kl}

    assert best_of({"a": of(0.85, 0.03), "b": of(0.83, 0.02), "c": of(0.99, 0.19)}) == "c"
    assert best_of({"a": of(0.995, 0.03), "b": of(0.99, 0.02), "c": of(0.97, 0.01)}) == "b"
    assert best_of({"a": of(1.17, 0.19), "b": of(0.999, 1e-5)}) == "b"  # more than all is all
    assert best_of({"a": of(-1.0, 0.1), "b": of(-3.0, 0.05)}) == "a"


def test_a_run_trained_through_its_merge_is_written_as_it_was_trained_to_the_bit(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    from graftlm.adapters import original_weights, train_through_merge
    from graftlm.adapters.peft_format import load_adapter

    run, base = trained(tmp_path / "run", bases["llama"]), bases["llama"]
    as_run(run, base, LoRAConfig(rank=4, alpha=8, merge_aware="nf4"), dtype="float32")
    report = merged(run, tmp_path / "out", to="nf4")
    assert report["chosen"] == "nf4-original"
    assert report["kept"] == 1.0
    live, _ = load_model(base, quantize="nf4")
    load_adapter(live, run)
    train_through_merge(live, original_weights(str(base)))
    written, _ = load_model(tmp_path / "out", quantize=None)
    with torch.no_grad():
        assert torch.equal(live(IDS).logits, written(IDS).logits)
    for name, adapter in lora_modules(live).items():
        layer = written.get_submodule(name)
        assert isinstance(layer, FrozenLinear)
        assert isinstance(adapter.base, FrozenLinear)
        here, there = layer.frozen.tensors(), adapter.base.frozen.tensors()
        assert all(torch.equal(here[key], there[key]) for key in there), name


def test_bitsandbytes_reads_the_4_bit_merge(bases: dict[str, Path], tmp_path: Path) -> None:
    run = trained(tmp_path / "run", bases["llama"])
    merged(run, tmp_path / "out", to="nf4")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ours, _ = load_model(tmp_path / "out", quantize=None)
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, ours(IDS).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("targets", [("lm_head",), ("embed_tokens",), ("lm_head", "embed_tokens")])
def test_tied_ends_part_where_one_is_adapted(
    targets: tuple[str, ...], bases: dict[str, Path], tmp_path: Path
) -> None:
    from graftlm.adapters.peft_format import load_adapter

    base = bases["llama-tied"]
    run = trained(tmp_path / "run", base, targets=targets)
    (run / "config.yaml").unlink()
    (run / "provenance.json").unlink()
    report = merged(run / "adapter", tmp_path / "out")
    assert report["chosen"] == "16bit-original"
    live, _ = load_model(base, quantize=None)
    load_adapter(live, run / "adapter")
    with torch.no_grad():
        written = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
        torch.testing.assert_close(written(IDS).logits, live(IDS).logits, rtol=0, atol=1e-4)


def test_a_base_without_a_tokenizer_is_compared_on_random_tokens(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    run, base = trained(tmp_path / "run", bases["llama"]), tmp_path / "base"
    shutil.copytree(bases["llama"], base, ignore=shutil.ignore_patterns("tokenizer*", "*.jinja"))
    for file in (run / "adapter").glob("tokenizer*"):
        file.unlink()
    (run / "config.yaml").unlink()
    report = merged(run / "adapter", tmp_path / "out", base=str(base))
    assert "random tokens" in report["rows"]["measured"]
    assert report["chosen"] == "16bit-original"


# --- the proof of effect catches ----------------------------------------------------------------


def fails(run: Path, out: Path, match: str, kind: type[Exception] = GraftLMError) -> None:
    with pytest.raises(kind, match=match):
        merged(run, out)
    assert not out.exists()
    assert not list(out.parent.glob(f".{out.name}.*"))


def test_an_adapter_of_zeros(bases: dict[str, Path], tmp_path: Path) -> None:
    fails(trained(tmp_path / "run", bases["llama"], std=0.0), tmp_path / "out", "changes nothing")


def test_an_adapter_of_another_base_of_the_same_shape(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    run = trained(tmp_path / "run", bases["llama"])
    other = tmp_path / "other"
    shutil.copytree(bases["llama"], other)
    shard = sorted(other.glob("*.safetensors"))[0]
    save_file({k: t + 0.01 for k, t in load_file(shard).items()}, shard, {"format": "pt"})
    with pytest.raises(ArtifactError, match="another hash"):
        measured_merge(run, tmp_path / "out", base=str(other))


def test_an_adapter_of_another_base_of_another_shape(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    run = trained(tmp_path / "run", bases["llama"])
    (run / "provenance.json").write_text("{}")
    with pytest.raises(ArtifactError, match="does not fit"):
        measured_merge(run, tmp_path / "out", base=str(bases["gpt2"]))


def test_half_of_the_keys_renamed(bases: dict[str, Path], tmp_path: Path) -> None:
    run = trained(tmp_path / "run", bases["llama"])
    file = adapter_folder(run) / "adapter_model.safetensors"
    tensors = load_file(file)
    renamed = {
        key.replace("self_attn", "attention") if index % 2 else key: tensor
        for index, (key, tensor) in enumerate(sorted(tensors.items()))
    }
    save_file(renamed, file, {"format": "pt"})
    fails(run, tmp_path / "out", "does not fit", ArtifactError)


def test_a_shard_swapped_for_that_of_the_base(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(tmp_path / "run", bases["llama"])
    write = module._write

    def swapped(source: Any, reader: Any, place: Path) -> int:
        nbytes = write(source, reader, place)
        tensors = load_file(place / "model.safetensors")
        base = {k: t for f in bases["llama"].glob("*.safetensors") for k, t in load_file(f).items()}
        tensors |= {k: t for k, t in base.items() if ".layers.1." in k}
        save_file(tensors, place / "model.safetensors", {"format": "pt"})
        return nbytes

    monkeypatch.setattr(module, "_write", swapped)
    fails(run, tmp_path / "out", "first layer that differs is model.layers.1")


def test_a_folder_that_is_the_base(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(tmp_path / "run", bases["llama"])
    write = module._write
    monkeypatch.setattr(
        module, "_write", lambda source, reader, place: write(source, source.base(), place)
    )
    fails(run, tmp_path / "out", "it is the base model.*model.layers.0")


def test_a_template_that_is_lost(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(tmp_path / "run", bases["llama"])
    (run / "adapter" / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert merged(run, tmp_path / "whole")["chosen"] == "16bit-dequantized"
    save = module.save_tokenizer

    def loses(tokenizer: Any, place: Path) -> None:
        other = copy.deepcopy(tokenizer)
        other.chat_template = None
        save(other, place)

    monkeypatch.setattr(module, "save_tokenizer", loses)
    fails(run, tmp_path / "out", "not the chat template of the training")


# --- refusals -----------------------------------------------------------------------------------


def test_a_merge_that_keeps_too_little_is_refused_without_force(
    bases: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run_command(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["graftlm", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0)

    run = trained(tmp_path / "run", bases["llama"])
    monkeypatch.setattr(module, "kept_share", lambda *_: (0.5, "loss"))
    out = tmp_path / "out"
    command = ["merge", str(run), "--out", str(out), "--to", "nf4"]
    assert run_command(*command) == 1
    assert "keeps 50.0% of the tune" in capsys.readouterr().err
    assert not out.exists()
    assert run_command(*command, "--force", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["kept"] == 0.5
    assert {"base", "candidates", "chosen", "out"} <= report.keys()
    assert (out / "merge_report.html").read_text().count(report["chosen"]) >= 2


def test_impossible_kinds_are_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    run = trained(tmp_path / "run", bases["llama"])
    for wrong in ({"to": "nf5"}, {"to": "int8"}, {"onto": "nf5"}):
        with pytest.raises(ConfigError):
            measured_merge(run, tmp_path / "out", **wrong)  # type: ignore[arg-type]
