from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from graftlm.cache import cache_folder, once
from graftlm.errors import ModelError, ResourceError
from graftlm.models import builtin, load_model, resolve

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

HIDDEN, HEADS, FEED = 64, 4, 96


def write_llama(path: Path, without: str = "", blocks: int = 1) -> dict[str, np.ndarray]:
    """A one-layer random Llama over bytes as a GGUF file: Q8_0 matrices, float32 norms.

    The tensor called ``without`` is left out; the header says it has ``blocks`` layers.
    """
    draw = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(blocks)
    writer.add_feed_forward_length(FEED)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(260)
    alphabet = [character for _, character in sorted(bytes_to_unicode().items())]
    tokens = [*alphabet, "<s>", "</s>", "<pad>", "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256 + [3] * 3 + [1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_pad_token_id(258)
    shapes = {
        "token_embd.weight": (260, HIDDEN),
        "blk.0.attn_q.weight": (HIDDEN, HIDDEN),
        "blk.0.attn_k.weight": (HIDDEN, HIDDEN),
        "blk.0.attn_v.weight": (HIDDEN, HIDDEN),
        "blk.0.attn_output.weight": (HIDDEN, HIDDEN),
        "blk.0.ffn_gate.weight": (FEED, HIDDEN),
        "blk.0.ffn_up.weight": (FEED, HIDDEN),
        "blk.0.ffn_down.weight": (HIDDEN, FEED),
        "output.weight": (260, HIDDEN),
    }
    dense = {}
    for name, shape in shapes.items():
        packed = gguf.quantize(
            draw.normal(size=shape).astype(np.float32) * 0.1, gguf.GGMLQuantizationType.Q8_0
        )
        if name != without:
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        dense[name] = gguf.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
    for name in ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"):
        if name != without:
            writer.add_tensor(name, np.ones(HIDDEN, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return dense


def bytes_to_unicode() -> dict[int, str]:
    from tokenizers import pre_tokenizers

    return dict(enumerate(sorted(pre_tokenizers.ByteLevel.alphabet())))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRAFTLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_gguf_becomes_a_folder_once(cache: Path, tmp_path: Path, capsys: Any) -> None:
    dense = write_llama(tmp_path / "m.gguf")
    model, tokenizer = load_model(tmp_path / "m.gguf", quantize=None)
    assert "Converting m.gguf once" in capsys.readouterr().err
    assert model.dtype == torch.bfloat16
    for mine, theirs in (
        (model.model.embed_tokens, "token_embd"),
        (model.lm_head, "output"),
        (model.model.layers[0].mlp.down_proj, "blk.0.ffn_down"),
        (model.model.layers[0].self_attn.v_proj, "blk.0.attn_v"),
    ):
        expected = torch.from_numpy(dense[f"{theirs}.weight"]).bfloat16()
        assert torch.equal(mine.weight, expected)
    assert tokenizer.decode(tokenizer("phở").input_ids, skip_special_tokens=True) == "phở"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (256, 257)
    first = resolve(tmp_path / "m.gguf")
    assert first.kind == "gguf"
    assert cache in first.path.parents
    (tmp_path / "m.gguf").rename(tmp_path / "moved.gguf")
    assert resolve(tmp_path / "moved.gguf").path == first.path
    assert "Converting" not in capsys.readouterr().err


def test_gguf_loads_in_4_bits(cache: Path, tmp_path: Path) -> None:
    write_llama(tmp_path / "m.gguf")
    model, _ = load_model(tmp_path / "m.gguf", quantize="nf4")
    assert type(model.model.layers[0].mlp.down_proj).__name__ == "FrozenLinear"


def test_file_that_is_no_gguf_is_refused(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(ModelError, match="not a GGUF file"):
        resolve(tmp_path / "m.gguf")
    assert not list((cache / "models").glob("*[!k]"))


def test_truncated_gguf_is_refused_and_leaves_nothing(cache: Path, tmp_path: Path) -> None:
    write_llama(tmp_path / "m.gguf")
    whole = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"m\.gguf"):
        resolve(tmp_path / "m.gguf")
    assert [path.suffix for path in (cache / "models").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("tensor", "weight"),
    [
        ("blk.0.ffn_up.weight", "model.layers.0.mlp.up_proj.weight"),
        ("blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight"),
        ("token_embd.weight", "model.embed_tokens.weight"),
    ],
)
def test_gguf_that_lacks_a_tensor_is_refused(
    tensor: str, weight: str, cache: Path, tmp_path: Path
) -> None:
    write_llama(tmp_path / "m.gguf", without=tensor)
    with pytest.raises(ModelError, match=weight):
        resolve(tmp_path / "m.gguf")
    assert [path.suffix for path in (cache / "models").iterdir()] == [".lock"]


def test_a_header_that_claims_more_than_the_file_has_is_refused_at_once(
    cache: Path, tmp_path: Path
) -> None:
    """Each of these made a reader allocate, or build a model of a million layers."""
    file = tmp_path / "m.gguf"
    write_llama(file, blocks=10**6)
    with pytest.raises(ModelError, match=r"block_count = 1000000, but holds .* 1 blocks"):
        resolve(file)
    write_llama(file)
    whole = file.read_bytes()
    many = (2**62).to_bytes(8, "little")
    name = b"tokenizer.ggml.tokens"
    array = whole.index(name) + len(name) + 8
    shape = whole.index(b"token_embd.weight") + len(b"token_embd.weight") + 4
    broken = {
        "claims .* values": [whole[:8] + many + whole[16:], whole[:16] + many + whole[24:]],
        "claims .* values|ends in": [whole[:array] + many + whole[array + 8 :]],
        "larger than the file": [whole[:shape] + many + whole[shape + 8 :]],
        "its version is 9": [whole[:4] + b"\x09\0\0\0" + whole[8:]],
        "corrupt or cut off": [whole[:size] for size in (4, 7, 40, 900, array + 40)],
    }
    for words, contents in broken.items():
        for content in contents:
            file.write_bytes(content)
            with pytest.raises(ModelError, match=words):
                resolve(file)


def test_a_conversion_counts_towards_the_memory_of_the_run(cache: Path, tmp_path: Path) -> None:
    write_llama(tmp_path / "m.gguf")
    with pytest.raises(
        ResourceError, match=r"takes about 0\.4 GB of memory; this run may take 0\.1"
    ):
        resolve(tmp_path / "m.gguf", most_bytes=100_000_000)
    folder = resolve(tmp_path / "m.gguf", most_bytes=1_000_000_000).path
    assert resolve(tmp_path / "m.gguf", most_bytes=100_000_000).path == folder  # nothing to convert


@pytest.mark.parametrize("record", [True, False])
def test_a_damaged_conversion_is_found_and_made_again(
    record: bool, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_llama(tmp_path / "m.gguf")
    folder = resolve(tmp_path / "m.gguf").path
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    weights = whole["model.safetensors"]
    flipped = weights[:-9] + bytes([weights[-9] ^ 1]) + weights[-8:]
    damages = {
        "cut off": lambda: (folder / "model.safetensors").write_bytes(weights[:-100]),
        "a bit": lambda: (folder / "model.safetensors").write_bytes(flipped),
        "lost": lambda: (folder / "config.json").unlink(),
        "garbage": lambda: (folder / "tokenizer.json").write_bytes(b"\0\xff"),
        "all lost": lambda: [file.unlink() for file in folder.iterdir()],
    }
    if not record:  # as an older graftlm wrote it: only the checksum shows a bit
        del damages["a bit"]
    for name, damage in damages.items():
        if not record:
            (folder / "converted.json").unlink()
        damage()
        capsys.readouterr()
        assert resolve(tmp_path / "m.gguf").path == folder, name
        assert "is damaged" in capsys.readouterr().err, name
        for file in whole.keys() - {"converted.json"}:
            assert (folder / file).read_bytes() == whole[file], name
    for file in folder.iterdir():
        os.utime(file)  # as a copy of the cache: another time, the same content
    assert resolve(tmp_path / "m.gguf").path == folder
    assert "damaged" not in capsys.readouterr().err


def test_converting_is_done_in_another_process_and_says_one_line(
    cache: Path, tmp_path: Path
) -> None:
    write_llama(tmp_path / "m.gguf")
    script = (
        "import sys; from graftlm.models import resolve; "
        f"resolve({str(tmp_path / 'm.gguf')!r}); sys.exit('gguf' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr.strip().splitlines() == [f"Converting m.gguf once into {cache} …"]


def test_a_conversion_ends_with_the_process_that_asked_for_it(tmp_path: Path, cache: Path) -> None:
    write_llama(tmp_path / "m.gguf")
    command = [sys.executable, "-m", "graftlm.models.gguf_convert", str(tmp_path / "m.gguf"), "/no"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.close()  # as the system does when the parent is killed
    assert process.wait(60) == 1
    assert process.stdout is not None
    assert process.stdout.read() == b""
    process.stdout.close()


def test_a_conversion_that_is_killed_is_an_error_and_leaves_nothing(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_llama(tmp_path / "m.gguf")
    script = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(script))
    for end, error, words in (
        ("kill -9 $$", ResourceError, "killed, as the system does for lack of memory"),
        ("exit 3", ModelError, "exit status 3: last words"),
        (
            """echo {; echo '{"error": "no room", "kind": "ResourceError"}'; exit 1""",
            ResourceError,
            "no room",
        ),
    ):
        script.write_text(f"#!/bin/sh\necho last words >&2\n{end}\n")
        script.chmod(0o755)
        with pytest.raises(error, match=words):
            resolve(tmp_path / "m.gguf")
    assert [path.suffix for path in (cache / "models").iterdir()] == [".lock"]


def count_making(folder: Path) -> None:
    with (cache_folder() / "made").open("a") as file:
        file.write(f"{os.getpid()}\n")
    (folder / "value").write_text("made")


def ask(barrier: Any) -> None:
    barrier.wait()
    assert (once("kind", "key", count_making) / "value").read_text() == "made"


def test_processes_that_ask_at_once_make_it_once(cache: Path) -> None:
    cache.mkdir()
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    processes = [context.Process(target=ask, args=(barrier,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert len((cache / "made").read_text().splitlines()) == 1


def test_interrupted_making_leaves_nothing_to_mistake_for_the_result(cache: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        once("kind", "key", fail)
    assert not (cache / "kind/key").exists()
    cache.mkdir(exist_ok=True)
    assert (once("kind", "key", count_making) / "value").exists()


def test_unusable_cache_says_how_to_move_it(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GRAFTLM_CACHE", str(tmp_path / "file/cache"))
    with pytest.raises(ResourceError, match="GRAFTLM_CACHE"):
        once("kind", "key", count_making)


def test_package_with_another_file_is_refused(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    package = tmp_path / "site/fake_model_package.py"
    package.parent.mkdir()
    package.write_text("def assemble(path):\n    path.write_bytes(b'GGUF tampered')\n")
    monkeypatch.syspath_prepend(package.parent)
    model = builtin.MODELS["gemma-3-270m"]._replace(package="fake_model_package")
    monkeypatch.setitem(builtin.MODELS, "gemma-3-270m", model)
    with pytest.raises(ModelError, match=r"another file than expected"):
        resolve("gemma-3-270m")
    assert "ai.google.dev/gemma/terms" in capsys.readouterr().err
    assert not cache.exists()
