"""An `NF4Weight` in the on-disk layout of bitsandbytes, and back, without copying the weight.

For a module called `prefix`, in a safetensors file or a `state_dict`:

    prefix.weight                                 uint8 [ceil(n / 2), 1]    codes
    prefix.weight.absmax                          float32 [b], uint8 [b] if double-quantised
    prefix.weight.quant_map                       float32 [16]              the NF4 levels
    prefix.weight.nested_absmax                   float32 [ceil(b / 256)]   if double-quantised
    prefix.weight.nested_quant_map                float32 [256]             the dynamic map
    prefix.weight.quant_state.bitsandbytes__nf4   uint8 [k]                 UTF-8 JSON, `_State`

The codes, the maxima and the nested maxima are the same tensors in both forms, so memory-mapped
ones stay mapped. The two maps are constants of this package. A file with another map would decode
to wrong weights here, so it is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

import pydantic
import torch
from torch import Tensor

from graftlm.errors import ArtifactError
from graftlm.kernels.nf4.codebook import dynamic_levels, nf4_levels
from graftlm.kernels.nf4.double_quant import GROUP_SIZE
from graftlm.kernels.nf4.weight import NF4Weight

__all__ = ["from_bitsandbytes", "to_bitsandbytes"]

STATE = "quant_state.bitsandbytes__nf4"
FP4_STATE = "quant_state.bitsandbytes__fp4"


class _State(pydantic.BaseModel):
    """The JSON beside the tensors; the order of the fields is bitsandbytes' own."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    quant_type: Literal["nf4"]
    blocksize: Literal[32, 64, 128, 256, 512, 1024, 2048, 4096]
    dtype: Literal["float32", "bfloat16", "float16"]
    shape: list[pydantic.PositiveInt]
    nested_blocksize: Literal[256] | None = None
    nested_dtype: Literal["float32"] | None = None
    nested_offset: pydantic.FiniteFloat | None = None


def to_bitsandbytes(w4: NF4Weight, prefix: str) -> dict[str, Tensor]:
    """The tensors that bitsandbytes stores for a linear layer.

    Args:
        w4: the weight; its tensors are shared with the result, not copied.
        prefix: the module's name, such as ``model.layers.0.self_attn.q_proj``; may be empty.

    Returns:
        The tensors by name, ready for safetensors or `load_state_dict`.
    """
    weight = _weight_name(prefix)
    state: dict[str, Any] = {
        "quant_type": "nf4",
        "blocksize": w4.block_size,
        "dtype": str(w4.dtype).removeprefix("torch."),
        "shape": list(w4.shape),
    }
    tensors = {
        weight: w4.codes.view(-1, 1),
        f"{weight}.absmax": w4.absmax,
        f"{weight}.quant_map": nf4_levels(w4.device),
    }
    if w4.nested_absmax is not None and w4.offset is not None:
        state |= {
            "nested_blocksize": GROUP_SIZE,
            "nested_dtype": "float32",
            "nested_offset": w4.offset.item(),
        }
        tensors[f"{weight}.nested_absmax"] = w4.nested_absmax
        tensors[f"{weight}.nested_quant_map"] = dynamic_levels(w4.device)
    packed = bytearray(json.dumps(state).encode())
    tensors[f"{weight}.{STATE}"] = torch.frombuffer(packed, dtype=torch.uint8)
    return tensors


def from_bitsandbytes(tensors: Mapping[str, Tensor], prefix: str) -> NF4Weight:
    """Read the weight of a linear layer that bitsandbytes stored in NF4.

    Args:
        tensors: by name; others than the layer's are ignored, and only the layer's are looked up.
        prefix: the module's name; may be empty.

    Returns:
        A weight whose tensors are views of the ones given.

    Raises:
        ArtifactError: something is missing, of the wrong size or type, corrupt, or not NF4.
    """
    weight = _weight_name(prefix)
    if f"{weight}.{FP4_STATE}" in tensors:
        raise ArtifactError(
            f"{weight} is stored as fp4: expected nf4; quantise the original model again with "
            'bnb_4bit_quant_type="nf4", or with graftlm quantize'
        )
    state = _read_state(_take(tensors, f"{weight}.{STATE}"), weight)
    nested = state.nested_offset is not None
    stored = _take(tensors, weight)
    codes = stored.contiguous().view(-1).view(torch.uint8)  # quant_storage may be a wider type
    offset = torch.tensor(state.nested_offset, device=codes.device) if nested else None
    w4 = NF4Weight(
        codes=codes,
        absmax=_take(tensors, f"{weight}.absmax"),
        nested_absmax=_take(tensors, f"{weight}.nested_absmax") if nested else None,
        offset=offset,
        shape=tuple(state.shape),
        dtype=getattr(torch, state.dtype),
        block_size=state.blocksize,
    )
    _check_sizes(w4, weight)
    _check_maps(w4, tensors, weight)
    return w4


def _weight_name(prefix: str) -> str:
    return f"{prefix}.weight" if prefix else "weight"


def _take(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    try:
        return tensors[name]
    except KeyError:
        raise ArtifactError(
            f"{name} is missing: expected the tensors of a 4-bit layer as bitsandbytes stores "
            "them; the file is incomplete or this layer is not quantised"
        ) from None


def _read_state(packed: Tensor, weight: str) -> _State:
    name = f"{weight}.{STATE}"
    advice = "the file is corrupt or of another format; fetch or quantise the model again"
    if packed.dtype != torch.uint8:
        raise ArtifactError(f"{name} has {packed.dtype}: expected uint8 bytes of JSON; {advice}")
    try:
        state = _State.model_validate_json(bytes(packed.reshape(-1).cpu().numpy()))
    except pydantic.ValidationError as error:
        problems = "; ".join(
            ": ".join([*(str(part) for part in problem["loc"]), problem["msg"]])
            for problem in error.errors()
        )
        raise ArtifactError(f"{name} cannot be used: {problems}; {advice}") from None
    nested = [state.nested_blocksize, state.nested_dtype, state.nested_offset]
    if any(part is None for part in nested) and any(part is not None for part in nested):
        raise ArtifactError(
            f"{name} has some of nested_blocksize, nested_dtype, nested_offset: expected all or "
            f"none; {advice}"
        )
    return state


def _check_sizes(w4: NF4Weight, weight: str) -> None:
    blocks = -(-w4.numel // w4.block_size)
    expected: dict[str, tuple[Tensor, torch.dtype, int]] = {
        weight: (w4.codes, torch.uint8, (w4.numel + 1) // 2)
    }
    if w4.nested_absmax is None:
        expected[f"{weight}.absmax"] = (w4.absmax, torch.float32, blocks)
    else:
        groups = -(-blocks // GROUP_SIZE)
        expected[f"{weight}.absmax"] = (w4.absmax, torch.uint8, blocks)
        expected[f"{weight}.nested_absmax"] = (w4.nested_absmax, torch.float32, groups)
    for name, (tensor, dtype, count) in expected.items():
        if tensor.dtype != dtype or tuple(tensor.shape) != (count,):
            raise ArtifactError(
                f"{name} has {tensor.dtype} {tuple(tensor.shape)}: expected {dtype} {(count,)} for "
                f"a weight of shape {w4.shape} in blocks of {w4.block_size}; the file is corrupt, "
                "or its parts are of different models"
            )


def _check_maps(w4: NF4Weight, tensors: Mapping[str, Tensor], weight: str) -> None:
    _check_map(_take(tensors, f"{weight}.quant_map"), nf4_levels(), None, f"{weight}.quant_map")
    if w4.nested_absmax is not None:
        name = f"{weight}.nested_quant_map"
        _check_map(_take(tensors, name), dynamic_levels(), w4.absmax, name)


def _check_map(stored: Tensor, levels: Tensor, used: Tensor | None, name: str) -> None:
    """Refuse a map that differs; with ``used``, only where a code points at the difference.

    bitsandbytes on a CPU once wrote -1 over the first level of the dynamic map it saved, which
    matters only to blocks with code 0.
    """
    same_kind = stored.dtype == levels.dtype and stored.shape == levels.shape
    wrong = (stored.cpu() != levels) if same_kind else torch.ones(1, dtype=torch.bool)
    if same_kind and used is not None and wrong.any():
        wrong = wrong[used.cpu().int()]
    if wrong.any():
        raise ArtifactError(
            f"{name} is not the map this format has: expected the {levels.numel()} float32 levels "
            "of bitsandbytes; the weight was quantised in another way, so quantise the original "
            "model again"
        )
