"""Writes a merged model as one GGUF file, tensor by tensor: peak memory is one tensor.

If the base came from a GGUF file, the metadata and the tokenizer of that file are kept, except
those fields that describe the weights and the chat template, and new tokens are added to its list.
Tensors that the merge does not change are copied from it, byte by byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graftlm.exporting.gguf.architecture import ARCHITECTURES, file_settings
from graftlm.exporting.gguf.library import gguf_library
from graftlm.exporting.gguf.tensors import (
    FileTensor,
    in_file_layout,
    merged_tensors,
    to_bytes,
)
from graftlm.exporting.gguf.vocabulary import (
    LEAST_SCORE,
    UNUSED,
    Vocabulary,
    unused_token,
    vocabulary,
)
from graftlm.exporting.merge_plan import Merge

__all__ = ["predicted_bytes", "write_model"]

ALIGNMENT = 32
METADATA_BYTES = 50_000_000
"""More than the tokens of any vocabulary take."""
FILE_TYPES = {
    "f32": "ALL_F32",
    "f16": "MOSTLY_F16",
    "bf16": "MOSTLY_BF16",
    "q8_0": "MOSTLY_Q8_0",
    "q4_0": "MOSTLY_Q4_0",
}
REPLACED = ("GGUF.", "general.file_type", "general.quantization_version", "general.architecture")
"""Fields of a base's file, or their beginnings, that the writer sets itself."""


def predicted_bytes(plan: list[FileTensor]) -> int:
    """The size of the file, rounded up."""
    return METADATA_BYTES + sum(_bytes_of(tensor) + ALIGNMENT for tensor in plan)


def write_model(
    file: Path,
    merge: Merge,
    plan: list[FileTensor],
    config: Any,
    tokenizer: Any,
    kind: str,
    base_file: Path | None,
    model_name: str,
    added: Mapping[int, tuple[str, int]] | None = None,
) -> None:
    """Write ``file``.

    Args:
        file: a temporary name.
        merge: the weights.
        plan: its tensors, from `file_tensors`.
        config: the base's config.
        tokenizer: with the chat template of the training.
        kind: a key of `TYPES`.
        base_file: the GGUF file that the base was converted from, if there is one.
        model_name: the base's name, for the file's metadata.
        added: the tokens that the base's tokenizer has not; see `added_tokens`.
    """
    library = gguf_library()
    name = ARCHITECTURES[config.model_type].name
    writer = library.GGUFWriter(file, name)
    settings, factors = file_settings(config)
    if base_file is None:
        for key, value in settings.items():
            _add(writer, f"{name}.{key}", value)
        writer.add_name(model_name)
        _add_vocabulary(writer, vocabulary(tokenizer, config.vocab_size))
    else:
        _keep(writer, base_file, added or {}, config.vocab_size)
    if template := getattr(tokenizer, "chat_template", None):
        writer.add_chat_template(template)
    writer.add_file_type(library.LlamaFileType[FILE_TYPES[kind]])
    writer.add_quantization_version(library.GGML_QUANT_VERSION)
    kinds = library.GGMLQuantizationType
    import numpy as np

    numbers = {key: np.asarray(value, dtype=np.float32) for key, value in factors.items()}
    for key, array in numbers.items():
        writer.add_tensor_info(f"{key}.weight", array.shape, array.dtype, array.nbytes)
    for tensor in plan:
        writer.add_tensor_info(
            tensor.name,
            tensor.shape,
            np.dtype(np.float32),
            _bytes_of(tensor),
            raw_dtype=kinds[tensor.type],
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    try:
        for array in numbers.values():
            writer.write_tensor_data(array)
        own = {} if base_file is None else _tensors_in(base_file)
        for tensor, value in merged_tensors(merge, plan):
            if tensor.kept:
                writer.write_tensor_data(own[tensor.name].data)
                continue
            laid_out = in_file_layout(tensor.parameter, value, config)
            writer.write_tensor_data(to_bytes(laid_out, tensor.type))
    finally:
        writer.close()


def _tensors_in(file: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf_library().GGUFReader(file).tensors}


def _bytes_of(tensor: FileTensor) -> int:
    library = gguf_library()
    block, size = library.GGML_QUANT_SIZES[library.GGMLQuantizationType[tensor.type]]
    count = 1
    for side in tensor.shape:
        count *= side
    return int(count // block * size)


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)


def _add_vocabulary(writer: Any, tokens: Vocabulary) -> None:
    writer.add_tokenizer_model(tokens.model)
    if tokens.split is not None:
        writer.add_tokenizer_pre(tokens.split)
    writer.add_token_list(tokens.tokens)
    writer.add_token_types(tokens.types)
    if tokens.scores is not None:
        writer.add_token_scores(tokens.scores)
        writer.add_add_space_prefix(tokens.add_space_prefix)
    if tokens.merges is not None:
        writer.add_token_merges(tokens.merges)
    for role, token in tokens.special.items():
        writer.add_uint32(f"tokenizer.ggml.{role}_token_id", token)
    writer.add_add_bos_token(tokens.add_bos)
    writer.add_add_eos_token(tokens.add_eos)


def _keep(writer: Any, base_file: Path, added: Mapping[int, tuple[str, int]], rows: int) -> None:
    """Copy the metadata of another file; its list of tokens gets ``rows`` entries at least."""
    library = gguf_library()
    reader = library.GGUFReader(base_file)
    types = library.GGUFValueType
    for key, field in reader.fields.items():
        if key.startswith(REPLACED) or key == "tokenizer.chat_template":
            continue
        value: Any = field.contents()
        if key.endswith(".vocab_size"):
            value = rows
        elif key == "tokenizer.ggml.tokens":
            value = [*value, *map(unused_token, range(len(value), rows))]
            for place, (text, _) in added.items():
                value[place] = text
        elif key == "tokenizer.ggml.token_type":
            value = [*value, *[UNUSED] * (rows - len(value))]
            for place, (_, kind) in added.items():
                value[place] = kind
        elif key == "tokenizer.ggml.scores":
            value = [*value, *[LEAST_SCORE] * (rows - len(value))]
        if field.types[0] == types.ARRAY:
            writer.add_key_value(key, value, types.ARRAY, sub_type=field.types[-1])
        else:
            writer.add_key_value(key, value, field.types[0])
