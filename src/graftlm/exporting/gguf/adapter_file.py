"""Export target `gguf-adapter`: the adapter alone, for llama.cpp beside a GGUF of its base.

llama.cpp computes `y = W x + (alpha / r) · B A x` with one alpha for the file and each layer's own
r. A layer's scaling s (α/√r for rsLoRA, or from a pattern of alphas) is therefore folded into B:

    alpha = s₀ · r₀  of the adapter's settings        B' = B · (s · r / alpha)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from graftlm.adapters.adapted import lora_modules
from graftlm.adapters.adapter_folder import run_settings
from graftlm.adapters.lora_bias import WithBias
from graftlm.adapters.lora_embedding import LoRAEmbedding
from graftlm.adapters.lora_linear import LoRALinear
from graftlm.adapters.peft_format import load_adapter
from graftlm.exporting.gguf.architecture import ARCHITECTURES, permuted, problems_of
from graftlm.exporting.gguf.library import gguf_library
from graftlm.exporting.gguf.tensors import tensor_names
from graftlm.exporting.llama_cpp import compare_file
from graftlm.exporting.rules import file_rules, with_adapter
from graftlm.exporting.target import ExportError, ExportTarget, Proof, register_target
from graftlm.files import atomic_write, require_free_space
from graftlm.models import resolve
from graftlm.models.load import empty_model, load_config

__all__ = ["AdapterFile"]

LARGEST_ERROR = {"f32": 1e-6, "f16": 1e-3}


class AdapterFile(ExportTarget):
    """A LoRA in GGUF: `llama-cli -m base.gguf --lora adapter.gguf`."""

    quantizations: ClassVar = ("f32", "f16")

    def check(self, adapter: Path, base: str) -> list[str]:
        """Check the architecture and each adapted layer against what llama.cpp reads."""
        gguf_library()
        settings = run_settings(adapter)
        if settings is not None and settings.lora.merge_aware:
            return ["the adapter was trained through its merge: only the merged model is exact"]
        if rules := file_rules(adapter, "gguf-adapter"):
            return rules
        model, problems = with_adapter(adapter, base)
        return problems or self.rules(model)

    def rules(self, model: nn.Module) -> list[str]:
        """Plain LoRA, on weights that the file of the base has."""
        config: Any = model.config
        if problems := problems_of(config):
            return problems
        return _problems(dict(lora_modules(model)), config)

    def write(self, adapter: Path, base: str, out: Path) -> dict[str, Any]:
        """Write the file, read it again and compare every factor."""
        config = _config(base)
        tensors, alpha = _factors(adapter, config)
        require_free_space(out, sum(t.nbytes for t in tensors.values()) + 10**6, "Exporting")
        with atomic_write(out) as file:
            _write(file, config, tensors, alpha, self.quantization)
            if problems := _differences(file, tensors, alpha, LARGEST_ERROR[self.quantization]):
                raise ExportError(f"{out} was not written: " + "; ".join(problems))
            size = file.stat().st_size
        return {"alpha": alpha, "tensors": len(tensors), "bytes": size}

    def verify(self, adapter: Path, base: str, out: Path) -> Proof:
        """Compare the factors, and run llama.cpp with base and adapter where it is installed."""
        tensors, alpha = _factors(adapter, _config(base))
        problems = _differences(out, tensors, alpha, LARGEST_ERROR[self.quantization])
        run = compare_file(adapter, base, out, "original", as_adapter=True)
        return Proof([*problems, *run.problems], {"llama_cpp": run.figures})


def _config(base: str) -> Any:
    config = load_config(resolve(base).path)
    config.__dict__.pop("quantization_config", None)
    return config


def _modules(adapter: Path, config: Any) -> dict[str, Any]:
    model = empty_model(config)
    load_adapter(model, adapter)
    return dict(lora_modules(model))


def _problems(modules: dict[str, Any], config: Any) -> list[str]:
    problems = []
    for name, module in modules.items():
        if isinstance(module, WithBias) and len(module.adapter_parameters()) > 2:
            problems.append(f"{name}: llama.cpp reads no trained biases")
        if type(module) not in (LoRALinear, LoRAEmbedding):
            kind = f"{module.variant!r} on a {module.beside}"
            problems.append(f"{name}: llama.cpp reads plain LoRA, not {kind}")
        tied = config.tie_word_embeddings
        if tied and (isinstance(module, LoRAEmbedding) or name.endswith("lm_head")):
            problems.append(
                f"{name}: the base uses one table as embedding and output head, and llama.cpp "
                "applies an adapter to neither or wrongly. Export `gguf` instead"
            )
    return problems


def _factors(adapter: Path, config: Any) -> tuple[dict[str, Tensor], float]:
    """The tensors of the file, in float32, and its alpha."""
    modules = _modules(adapter, config)
    names = tensor_names(config)
    first = next(iter(modules.values()))
    alpha = float(first.scaling * first.rank)
    tensors = {}
    for place, module in modules.items():
        name = names.get_name(f"{place}.weight", try_suffixes=(".weight",))
        if name is None:
            raise ExportError(f"GGUF has no place for an adapter on {place}")
        A: Tensor
        B: Tensor
        if isinstance(module, LoRAEmbedding):
            A, B = module.lora_A.T, module.lora_B
        else:
            A, B = module.factors()
        if ARCHITECTURES[config.model_type].pairs:
            B = _permuted(place, B, config)
        tensors[f"{name}.lora_a"] = A.detach().float().contiguous()
        tensors[f"{name}.lora_b"] = (
            (B * (module.scaling * module.rank / alpha)).detach().contiguous()
        )
    return tensors, alpha


def _permuted(place: str, B: Tensor, config: Any) -> Tensor:
    if place.endswith(".q_proj"):
        return permuted(B, config.num_attention_heads)
    if place.endswith(".k_proj"):
        return permuted(B, config.num_key_value_heads or config.num_attention_heads)
    return B


def _write(file: Path, config: Any, tensors: dict[str, Tensor], alpha: float, kind: str) -> None:
    library = gguf_library()
    writer = library.GGUFWriter(file, ARCHITECTURES[config.model_type].name)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.to(torch.float16 if kind == "f16" else tensor.dtype).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _differences(file: Path, tensors: dict[str, Tensor], alpha: float, largest: float) -> list[str]:
    try:
        reader = gguf_library().GGUFReader(file)
    except Exception as error:  # the library raises many types for a damaged file
        return [f"{file} cannot be read again: {type(error).__name__}: {error}"]
    stored = {tensor.name: tensor for tensor in reader.tensors}
    if stored.keys() != tensors.keys():
        return [f"the file has {len(stored)} tensors, expected {len(tensors)}"]
    field = reader.fields.get("adapter.lora.alpha")
    if field is None or abs(field.contents() - alpha) > 1e-6 * abs(alpha):
        return ["the file does not hold the adapter's alpha"]
    for name, tensor in tensors.items():
        written = torch.from_numpy(stored[name].data.copy()).float()
        if float((written - tensor).norm()) > largest * float(tensor.norm()):
            return [f"{name} is the first tensor that differs"]
    if all(not t.any() for name, t in tensors.items() if name.endswith("lora_b")):
        return ["the adapter changes no weight: every B is zero"]
    return []


register_target("gguf-adapter", AdapterFile)
