"""Export target `gguf`: the adapter merged into its base, as one file for llama.cpp.

    --quantization f16 (default), bf16, f32, q8_0, q4_0; through llama.cpp q4_k_m, q5_k_m, q6_k

Every tensor of the written file is read again and compared before the command says done.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from graftlm.adapters.adapted import lora_modules
from graftlm.adapters.adapter_folder import run_settings
from graftlm.adapters.adapter_tokenizer import adapter_tokenizer
from graftlm.errors import GraftLMError
from graftlm.exporting.compare_logits import compare
from graftlm.exporting.gguf.architecture import problems_of
from graftlm.exporting.gguf.library import gguf_library
from graftlm.exporting.gguf.mixtures import (
    BEFORE,
    MIXTURES,
    quantize_file,
    require_quantizer,
    with_types_of,
)
from graftlm.exporting.gguf.proof import prove
from graftlm.exporting.gguf.tensors import FileTensor, file_tensors, with_kept
from graftlm.exporting.gguf.vocabulary import added_tokens, vocabulary
from graftlm.exporting.gguf.write import predicted_bytes, write_model
from graftlm.exporting.llama_cpp import compare_file
from graftlm.exporting.merge_plan import Merge, prepare_merge
from graftlm.exporting.rules import with_adapter
from graftlm.exporting.target import ExportError, ExportTarget, Proof, register_target
from graftlm.files import atomic_write, require_free_space
from graftlm.models import resolve
from graftlm.models.gguf_convert import loaded_from_gguf
from graftlm.models.load import empty_model, load_config, tokenizer_in
from graftlm.models.source import original_gguf

__all__ = ["MergedFile", "write_base"]

LARGEST_DISTANCE = {"f32": 0.25, "bf16": 0.25, "f16": 0.25}
"""Of the file's logits from the adapter's, in the types where rounding is small."""


class MergedFile(ExportTarget):
    """One GGUF file that llama.cpp, Ollama and LM Studio load without an adapter."""

    quantizations: ClassVar = ("f16", "bf16", "f32", "q8_0", "q4_0", *MIXTURES)

    def check(self, adapter: Path, base: str) -> list[str]:
        """Check the architecture, every tensor's name, and the tokenizer; weights are not read."""
        gguf_library()
        require_quantizer(self.quantization)
        settings = run_settings(adapter)
        if settings is not None and settings.lora.merge_aware:
            return [
                "the adapter was trained through its merge into 4 bits, and only that merge is the "
                "model that was trained: use `graftlm merge`"
            ]
        folder = resolve(base).path
        config = load_config(folder)
        model, problems = with_adapter(adapter, base)
        if problems := problems or self.rules(model):
            return problems
        try:
            merge, _, tokenizer = self._prepared(adapter, base)
            if merge.dtype is None:
                vocabulary(tokenizer, merge.rows or config.vocab_size)
        except GraftLMError as error:
            return [str(error)]
        return []

    def rules(self, model: nn.Module) -> list[str]:
        """A family that llama.cpp computes in the same way, with the head it expects."""
        config: Any = model.config
        problems = problems_of(config)
        ends = [name for name in lora_modules(model) if name.endswith(("embed_tokens", "lm_head"))]
        if ends and config.model_type == "gemma2":
            problems.append(
                f"{ends[0]}: merging it unties table and head, and llama.cpp has one table for "
                "both in Gemma 2"
            )
        return problems

    def write(self, adapter: Path, base: str, out: Path) -> dict[str, Any]:
        """Write the file and prove it; return the proof's figures."""
        merge, plan, tokenizer = self._prepared(adapter, base)
        config = _longer(load_config(resolve(base).path), merge)
        kind, name = self.quantization, Path(base).name
        with original_gguf(base) as base_file, atomic_write(out) as file:
            if kind not in MIXTURES:
                plan = with_kept(plan, merge, base_file)
            require_free_space(out, predicted_bytes(plan) * (1 + (kind in MIXTURES)), "Exporting")
            first = BEFORE if kind in MIXTURES else kind
            added = added_tokens(tokenizer, tokenizer_in(resolve(base).path))
            write_model(file, merge, plan, config, tokenizer, first, base_file, name, added)
            if kind in MIXTURES:
                quantize_file(file, kind)
                plan = with_types_of(file, plan)
            template = getattr(tokenizer, "chat_template", None)
            proof = prove(file, merge, plan, config, template, added)
            if proof.problems:
                raise ExportError(f"{out} was not written: " + "; ".join(proof.problems))
            size = file.stat().st_size
        return {
            "quantization": self.quantization,
            "onto": merge.onto,
            "bytes": size,
            "kept_from_base": sum(tensor.kept for tensor in plan),
            "proof": proof.figures,
        }

    def verify(self, adapter: Path, base: str, out: Path) -> Proof:
        """Compare logits: transformers' own reader of GGUF, and llama.cpp where it is installed."""
        onto = prepare_merge(adapter, resolve(base).path, base).onto
        largest = LARGEST_DISTANCE.get(self.quantization)
        proof = compare(adapter, base, lambda: loaded_from_gguf(out), onto, largest)
        run = compare_file(adapter, base, out, onto)
        figures = {**proof.figures, "llama_cpp": run.figures}
        return Proof([*proof.problems, *run.problems], figures)

    def _prepared(self, adapter: Path, base: str) -> tuple[Merge, list[FileTensor], Any]:
        folder = resolve(base).path
        config = load_config(folder)
        merge = prepare_merge(adapter, folder, base)
        config.__dict__.pop("quantization_config", None)
        config = _longer(config, merge)
        shapes = {name: tensor.shape for name, tensor in empty_model(config).state_dict().items()}
        kind = BEFORE if self.quantization in MIXTURES else self.quantization
        plan = file_tensors(merge, config, shapes, kind)
        return merge, plan, adapter_tokenizer(adapter, tokenizer_in(folder))


def _longer(config: Any, merge: Merge) -> Any:
    """``config`` with the vocabulary that the merged model has."""
    if merge.rows:
        config.get_text_config().vocab_size = merge.rows
    return config


def write_base(file: Path, adapter: Path, base: str, kind: str = "f16") -> None:
    """Write the base of ``adapter`` as GGUF, without the adapter."""
    target = MergedFile(kind)
    merge, plan, tokenizer = target._prepared(adapter, base)
    merge.deltas, merge.untied_head = {}, None
    merge.rows, merge.longer = 0, frozenset()
    config = load_config(resolve(base).path)
    write_model(file, merge, plan, config, tokenizer, kind, None, Path(base).name)


register_target("gguf", MergedFile)
