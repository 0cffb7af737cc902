"""The tensors of a merged model under the names, in the layout and the types of GGUF.

A matrix is stored in the chosen type, vectors (norms, biases) in float32. Where rows are no whole
number of a type's blocks, and in the token table and the output head of a 4-bit file, a finer type
is used; llama.cpp does the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graftlm.errors import ArtifactError
from graftlm.exporting.gguf.architecture import ARCHITECTURES, permuted
from graftlm.exporting.gguf.library import gguf_library
from graftlm.exporting.merge_plan import Merge

__all__ = [
    "TYPES",
    "FileTensor",
    "file_tensors",
    "in_file_layout",
    "merged_tensors",
    "stored_type",
    "tensor_names",
    "to_bytes",
    "with_kept",
]

TYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
"""By the name in ``--quantization``: the name of the type in the `gguf` library."""


@dataclasses.dataclass(frozen=True)
class FileTensor:
    """One tensor of the file.

    Attributes:
        key: its key in the base's checkpoint.
        parameter: its name in the model.
        name: its name in the file.
        shape: as in PyTorch; GGUF lists dimensions in reverse.
        type: the name of its type in the `gguf` library.
        kept: whether the bytes of the base's own GGUF file are copied.
    """

    key: str
    parameter: str
    name: str
    shape: tuple[int, ...]
    type: str
    kept: bool = False


def file_tensors(merge: Merge, config: Any, shapes: dict[str, Any], kind: str) -> list[FileTensor]:
    """Every tensor of the file, in the order of `Merge.tensors`.

    Args:
        merge: the merge.
        config: the base's config.
        shapes: the shape of each parameter of the model.
        kind: a key of `TYPES`.

    Raises:
        ArtifactError: a tensor has no place in GGUF.
    """
    names = tensor_names(config)
    found, missing = [], []
    table, head = merge.untied_head or (None, None)
    tied = bool(config.tie_word_embeddings) and head is None
    for key in merge.weights:
        parameter = merge.places[key]
        if parameter == head or (tied and parameter == "lm_head.weight"):
            continue
        for one, place in [(key, parameter)] + [(head, head)] * (parameter == table):
            assert one is not None
            assert place is not None
            name = names.get_name(place, try_suffixes=(".weight", ".bias"))
            if name is None:
                missing.append(place)
                continue
            shape = tuple(shapes[place])
            found.append(FileTensor(one, place, name, shape, stored_type(name, shape, kind)))
    if missing:
        raise ArtifactError(f"GGUF has no place for these weights of the model: {missing[:5]}")
    return found


def with_kept(plan: list[FileTensor], merge: Merge, base_file: Path | None) -> list[FileTensor]:
    """The plan in which tensors that the merge does not change are copied from ``base_file``."""
    if base_file is None:
        return plan
    stored = {tensor.name: tensor for tensor in gguf_library().GGUFReader(base_file).tensors}
    changed = merge.deltas.keys() | merge.quantized.keys() | {*(merge.untied_head or ())}
    changed |= merge.longer
    return [
        tensor
        if tensor.parameter in changed or tensor.name not in stored
        else dataclasses.replace(tensor, type=stored[tensor.name].tensor_type.name, kept=True)
        for tensor in plan
    ]


def stored_type(name: str, shape: tuple[int, ...], kind: str) -> str:
    """The type that a tensor of this name and shape has in a file of this kind."""
    if len(shape) == 1:
        return "F32"
    if kind == "q4_0" and name in ("token_embd.weight", "output.weight"):
        kind = "q8_0"
    if kind in ("q8_0", "q4_0") and shape[-1] % 32:
        return "F16"
    return TYPES[kind]


def in_file_layout(parameter: str, tensor: Tensor, config: Any) -> Tensor:
    """A parameter as llama.cpp computes with it, in float32."""
    architecture = ARCHITECTURES[config.model_type]
    tensor = tensor.float()
    if architecture.norm_offset and parameter.endswith("norm.weight"):
        return tensor + architecture.norm_offset
    if architecture.pairs and ".q_proj." in parameter:
        return permuted(tensor, config.num_attention_heads)
    if architecture.pairs and ".k_proj." in parameter:
        return permuted(tensor, config.num_key_value_heads or config.num_attention_heads)
    return tensor


def to_bytes(tensor: Tensor, kind: str) -> Any:
    """A float32 tensor in a type of GGUF, as a numpy array of its bytes or numbers."""
    library = gguf_library()
    kinds = library.GGMLQuantizationType
    array = tensor.detach().numpy()
    if kind == "F32":
        return array
    if kind == "F16":
        return tensor.to(torch.float16).numpy()
    return library.quants.quantize(array, kinds[kind])


def merged_tensors(merge: Merge, plan: list[FileTensor]) -> Iterator[tuple[FileTensor, Tensor]]:
    """The planned tensors with their merged values, one at a time."""
    wanted = {tensor.key: tensor for tensor in plan}
    for key, value in merge.tensors():
        if key in wanted:
            yield wanted[key], value


def tensor_names(config: Any) -> Any:
    """The map of the `gguf` library from names of parameters to names in the file."""
    library = gguf_library()
    architecture = ARCHITECTURES[config.model_type].name
    numbers = {name: number for number, name in library.MODEL_ARCH_NAMES.items()}
    return library.get_tensor_name_map(numbers[architecture], config.num_hidden_layers)
