"""The on-disk layout, both ways, against live bitsandbytes objects."""

from __future__ import annotations

import json
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.functional import QuantState
from safetensors.torch import load_file, save_file

from graftlm.errors import ArtifactError
from graftlm.frozen.nf4.bitsandbytes_format import from_bitsandbytes, to_bitsandbytes
from graftlm.kernels.nf4 import dequantize, quantize
from tests.oracles import nf4_oracle as oracle

PREFIX = "model.layers.0.self_attn.q_proj"
WEIGHT = f"{PREFIX}.weight"
STATE = f"{WEIGHT}.quant_state.bitsandbytes__nf4"

all_forms = pytest.mark.parametrize("double_quant", [True, False])
all_types = pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)


def weight(dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = (96, 130)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def live_layer(dense: torch.Tensor, double_quant: bool) -> bnb.nn.Linear4bit:
    layer = bnb.nn.Linear4bit(
        dense.shape[1],
        dense.shape[0],
        bias=False,
        compress_statistics=double_quant,
        quant_type="nf4",
    )
    layer.weight = bnb.nn.Params4bit(
        dense, requires_grad=False, compress_statistics=double_quant, quant_type="nf4"
    )
    return layer.to("cpu")


@all_forms
@all_types
def test_written_tensors_equal_those_of_a_live_layer(
    dtype: torch.dtype, double_quant: bool
) -> None:
    dense = weight(dtype)
    theirs = live_layer(dense, double_quant).state_dict(prefix=f"{PREFIX}.")
    ours = to_bitsandbytes(quantize(dense, double_quant=double_quant), PREFIX)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert oracle.same_bits(tensor, theirs[name]), name


@all_forms
@all_types
def test_live_layer_is_read_bit_for_bit(dtype: torch.dtype, double_quant: bool) -> None:
    dense = weight(dtype)
    read = from_bitsandbytes(live_layer(dense, double_quant).state_dict(), "")
    assert oracle.differing_parts(read, quantize(dense, double_quant=double_quant)) == []


@all_forms
@all_types
def test_bitsandbytes_reads_what_is_written(dtype: torch.dtype, double_quant: bool) -> None:
    w4 = quantize(weight(dtype, (96, 128)), double_quant=double_quant)
    tensors = to_bitsandbytes(w4, PREFIX)
    parts = {name.removeprefix(f"{WEIGHT}."): t for name, t in tensors.items() if name != WEIGHT}
    state = QuantState.from_dict(dict(parts), device=torch.device("cpu"))
    dense = bnb.functional.dequantize_4bit(tensors[WEIGHT], state)
    assert oracle.same_bits(dense, dequantize(w4))
    parameter = bnb.nn.Params4bit.from_prequantized(tensors[WEIGHT], parts, device="cpu")
    assert parameter.quant_state.shape == (96, 128)


@all_forms
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 9), (64, 64), (129, 65), (300, 320)])
@pytest.mark.parametrize("block_size", [32, 64, 4096])
def test_round_trip_through_a_file(
    tmp_path: Path, shape: tuple[int, int], block_size: int, double_quant: bool
) -> None:
    w4 = quantize(weight(shape=shape), block_size, double_quant)
    save_file(to_bitsandbytes(w4, PREFIX), tmp_path / "model.safetensors")
    read = from_bitsandbytes(load_file(tmp_path / "model.safetensors"), PREFIX)
    assert oracle.differing_parts(read, w4) == []


def test_nothing_of_the_weight_is_copied() -> None:
    w4 = quantize(weight())
    tensors = to_bitsandbytes(w4, PREFIX)
    read = from_bitsandbytes(tensors, PREFIX)
    for name in ("codes", "absmax", "nested_absmax"):
        assert getattr(read, name).data_ptr() == getattr(w4, name).data_ptr(), name


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float16, torch.float32])
def test_codes_stored_under_a_wider_type_are_read(storage: torch.dtype) -> None:
    dense = weight()
    packed, state = bnb.functional.quantize_4bit(
        dense, quant_type="nf4", compress_statistics=True, quant_storage=storage
    )
    tensors = {f"weight.{name}": part for name, part in state.as_dict(packed=True).items()}
    read = from_bitsandbytes({"weight": packed, **tensors}, "")
    assert oracle.differing_parts(read, quantize(dense)) == []


def test_only_the_tensors_of_the_layer_are_looked_up() -> None:
    class Lazy(dict[str, torch.Tensor]):
        def __getitem__(self, name: str) -> torch.Tensor:
            assert name.startswith(PREFIX)
            return super().__getitem__(name)

    w4 = quantize(weight())
    tensors = Lazy(to_bitsandbytes(w4, PREFIX) | to_bitsandbytes(w4, "another"))
    assert oracle.differing_parts(from_bitsandbytes(tensors, PREFIX), w4) == []


def with_state(tensors: dict[str, torch.Tensor], **changes: object) -> dict[str, torch.Tensor]:
    state = json.loads(bytes(tensors[STATE].numpy())) | changes
    state = {name: value for name, value in state.items() if value is not ...}
    return tensors | {STATE: torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)}


@pytest.mark.parametrize(
    "name",
    ["", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", STATE[len(WEIGHT) :]],
)
def test_missing_tensor_is_named(name: str) -> None:
    tensors = to_bitsandbytes(quantize(weight()), PREFIX)
    del tensors[WEIGHT + name]
    with pytest.raises(ArtifactError, match=f"{WEIGHT}{name} is missing"):
        from_bitsandbytes(tensors, PREFIX)


def test_fp4_is_refused_by_name() -> None:
    packed, state = bnb.functional.quantize_4bit(weight(), quant_type="fp4")
    tensors = {f"weight.{name}": part for name, part in state.as_dict(packed=True).items()}
    with pytest.raises(ArtifactError, match="stored as fp4: expected nf4"):
        from_bitsandbytes({"weight": packed, **tensors}, "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quant_type": "fp4"}, "quant_type: Input should be 'nf4'"),
        ({"blocksize": 48}, "blocksize: Input should be 32"),
        ({"blocksize": "64"}, "blocksize"),
        ({"blocksize": 128}, r"absmax has torch.uint8 \(195,\): expected torch.uint8 \(98,\)"),
        ({"dtype": "int8"}, "dtype: Input should be 'float32'"),
        ({"shape": [96, -130]}, "shape: 1: Input should be greater than 0"),
        ({"shape": None}, "shape: Input should be a valid array"),
        ({"shape": [96, 131]}, r"weight has torch.uint8 \(6240,\): expected torch.uint8 \(6288,\)"),
        ({"shape": ...}, "shape: Field required"),
        ({"nested_blocksize": 128}, "nested_blocksize: Input should be 256"),
        ({"nested_dtype": ...}, "expected all or none"),
        ({"nested_offset": "much"}, "nested_offset: Input should be a valid number"),
        ({"surprise": 1}, "surprise: Extra inputs"),
    ],
    ids=str,
)
def test_wrong_state_is_refused_field_by_field(changes: dict[str, object], message: str) -> None:
    tensors = to_bitsandbytes(quantize(weight()), PREFIX)
    with pytest.raises(ArtifactError, match=message):
        from_bitsandbytes(with_state(tensors, **changes), PREFIX)


@pytest.mark.parametrize("garbage", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_corrupt_json_is_refused(garbage: bytes) -> None:
    tensors = to_bitsandbytes(quantize(weight()), PREFIX)
    tensors[STATE] = torch.tensor(list(garbage), dtype=torch.uint8)
    with pytest.raises(ArtifactError, match=r"cannot be used.*fetch or quantise the model again"):
        from_bitsandbytes(tensors, PREFIX)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (WEIGHT, lambda tensor: tensor[:-1]),
        (f"{WEIGHT}.absmax", lambda tensor: tensor[:-1]),
        (f"{WEIGHT}.absmax", lambda tensor: tensor.float()),
        (f"{WEIGHT}.nested_absmax", lambda tensor: tensor.double()),
        (f"{WEIGHT}.nested_absmax", lambda tensor: torch.cat([tensor, tensor])),
        (f"{WEIGHT}.quant_map", lambda tensor: tensor * 0.5),
        (f"{WEIGHT}.quant_map", lambda tensor: tensor[:-1]),
        (f"{WEIGHT}.nested_quant_map", lambda tensor: tensor * 0.5),
        (STATE, lambda tensor: tensor.float()),
    ],
)
def test_wrong_tensor_is_refused_by_name(name: str, change) -> None:  # type: ignore[no-untyped-def]
    tensors = to_bitsandbytes(quantize(weight()), PREFIX)
    tensors[name] = change(tensors[name])
    with pytest.raises(ArtifactError, match=name):
        from_bitsandbytes(tensors, PREFIX)


def test_a_level_of_the_map_may_differ_only_where_no_code_uses_it() -> None:
    """Older bitsandbytes wrote -1 over the first level when it quantised on a CPU."""
    w4 = quantize(weight())
    tensors = to_bitsandbytes(w4, PREFIX)
    tensors[f"{WEIGHT}.nested_quant_map"][0] = -1.0
    tensors[f"{WEIGHT}.absmax"] = w4.absmax.clamp(min=1)
    from_bitsandbytes(tensors, PREFIX)
    tensors[f"{WEIGHT}.absmax"][5] = 0
    with pytest.raises(ArtifactError, match="nested_quant_map is not the map"):
        from_bitsandbytes(tensors, PREFIX)
