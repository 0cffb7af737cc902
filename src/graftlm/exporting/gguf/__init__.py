"""GGUF: the file format of llama.cpp, Ollama and LM Studio, written with the `gguf` library."""

from __future__ import annotations

from graftlm.exporting.gguf.library import gguf_library

__all__ = ["gguf_library"]
