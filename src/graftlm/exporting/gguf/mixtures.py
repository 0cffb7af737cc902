"""Quantisations that llama.cpp itself makes: mixtures of types, chosen tensor by tensor.

    q4_k_m, q5_k_m, q6_k        about 4.8, 5.7 and 6.6 bits a weight

The file is written in f16 first. llama.cpp reads it and writes the mixture, one tensor at a time;
where rows are no multiple of 256 it takes an older type of nearly the same size. The proof then
compares every tensor with the merged weight, in the type that it got.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from graftlm.errors import ConfigError, GraftLMError
from graftlm.exporting.gguf.library import gguf_library
from graftlm.exporting.gguf.tensors import FileTensor
from graftlm.files import atomic_write
from graftlm.models.llama_cpp import installed

__all__ = ["BEFORE", "MIXTURES", "quantize_file", "require_quantizer", "with_types_of"]

MIXTURES = {"q4_k_m": "MOSTLY_Q4_K_M", "q5_k_m": "MOSTLY_Q5_K_M", "q6_k": "MOSTLY_Q6_K"}
"""By the name in ``--quantization``: the name of the file's type in the `gguf` library."""

BEFORE = "f16"
"""The type of the file that llama.cpp reads."""


def require_quantizer(kind: str) -> None:
    """Refuse a mixture where llama.cpp is not there to make it.

    Raises:
        ConfigError: ``kind`` is a mixture, and llama-cpp-python is not installed.
    """
    if kind in MIXTURES and not installed():
        raise ConfigError(
            f"--quantization {kind} is made by llama.cpp: pip install 'graftlm[llama-cpp]'. "
            "Without it there are f16, bf16, f32, q8_0 and q4_0"
        )


def quantize_file(file: Path, kind: str) -> None:
    """Replace a file in f16 by the mixture.

    Raises:
        GraftLMError: llama.cpp does not quantise it.
    """
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = int(gguf_library().LlamaFileType[MIXTURES[kind]])
    with atomic_write(file) as made:
        code = llama_cpp.llama_model_quantize(str(file).encode(), str(made).encode(), parameters)
        if code != 0:
            raise GraftLMError(
                f"llama.cpp does not write this model as {kind} (code {code}); q8_0 and q4_0 are "
                "written without it"
            )


def with_types_of(file: Path, plan: list[FileTensor]) -> list[FileTensor]:
    """The plan with the types that the file's tensors have."""
    types = {t.name: t.tensor_type.name for t in gguf_library().GGUFReader(file).tensors}
    return [
        dataclasses.replace(tensor, type=types.get(tensor.name, tensor.type)) for tensor in plan
    ]
