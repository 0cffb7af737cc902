"""Export target `ollama`: a folder with a GGUF and a Modelfile.

    ollama create my-model -f OUT/Modelfile && ollama run my-model

The TEMPLATE is the prompt format of the training, the stop texts are what ends an answer there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from graftlm.adapters.adapter_tokenizer import adapter_tokenizer
from graftlm.errors import GraftLMError
from graftlm.exporting.gguf.merged_file import MergedFile
from graftlm.exporting.model_card import card_of_adapter, write_card
from graftlm.exporting.ollama_template import OllamaTemplate, ollama_template
from graftlm.exporting.target import ExportTarget, Proof, register_target
from graftlm.files import atomic_folder
from graftlm.models import resolve
from graftlm.models.load import tokenizer_in

__all__ = ["OllamaFolder"]

MODEL_NAME = "model.gguf"
PARAMETERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "repetition_penalty": "repeat_penalty",
}
"""Of generation_config.json, and their names in a Modelfile."""


class OllamaFolder(ExportTarget):
    """A folder for `ollama create`."""

    quantizations: ClassVar = MergedFile.quantizations

    def check(self, adapter: Path, base: str) -> list[str]:
        """Check what `gguf` checks, and that the chat template can be written for Ollama."""
        problems = MergedFile(self.quantization).check(adapter, base)
        try:
            ollama_template(_tokenizer(adapter, base))
        except GraftLMError as error:
            problems.append(str(error))
        return problems

    def rules(self, model: nn.Module) -> list[str]:
        """The rules of `gguf`."""
        return MergedFile(self.quantization).rules(model)

    def write(self, adapter: Path, base: str, out: Path) -> dict[str, Any]:
        """Write both files; the GGUF is proven as by the target `gguf`."""
        tokenizer = _tokenizer(adapter, base)
        template = ollama_template(tokenizer)
        with atomic_folder(out) as folder:
            figures = MergedFile(self.quantization).write(adapter, base, folder / MODEL_NAME)
            stops = _stops(template, tokenizer)
            text = modelfile(template, stops, _sampling(resolve(base).path))
            (folder / "Modelfile").write_text(text, encoding="utf-8")
            kept = {"share of the update in the file": figures["proof"]["kept"]}
            write_card(folder, card_of_adapter(adapter, base, "ollama", kept))
        return {**figures, "stop": stops}

    def verify(self, adapter: Path, base: str, out: Path) -> Proof:
        """Verify the GGUF, and that the Modelfile is the one of this adapter."""
        tokenizer = _tokenizer(adapter, base)
        template = ollama_template(tokenizer)
        proof = MergedFile(self.quantization).verify(adapter, base, out / MODEL_NAME)
        text = modelfile(template, _stops(template, tokenizer), _sampling(resolve(base).path))
        problems = list(proof.problems)
        if (out / "Modelfile").read_text(encoding="utf-8") != text:
            problems.append("the Modelfile is not that of this adapter")
        return Proof(problems, proof.figures)


def modelfile(template: OllamaTemplate, stops: list[str], parameters: dict[str, Any]) -> str:
    """The text of a Modelfile."""
    lines = [f"FROM ./{MODEL_NAME}", f'TEMPLATE """{template.text()}"""']
    if template.default_system:
        lines.append(f'SYSTEM """{template.default_system}"""')
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    lines += [f"PARAMETER {name} {value}" for name, value in parameters.items()]
    return "\n".join(lines) + "\n"


def _tokenizer(adapter: Path, base: str) -> Any:
    return adapter_tokenizer(adapter, tokenizer_in(resolve(base).path))


def _stops(template: OllamaTemplate, tokenizer: Any) -> list[str]:
    """The first special token after an answer, else the text there."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    special = {*tokenizer.all_special_tokens, *added}
    there = [token for token in special if token in template.between]
    if there:
        return [min(there, key=lambda token: (template.between.index(token), -len(token)))]
    ended = template.after_answer.strip()
    return [ended] if ended else []


def _sampling(folder: Path) -> dict[str, Any]:
    file = folder / "generation_config.json"
    if not file.is_file():
        return {}
    settings = json.loads(file.read_text(encoding="utf-8"))
    return {
        name: settings[key] for key, name in PARAMETERS.items() if settings.get(key) is not None
    }


register_target("ollama", OllamaFolder)
