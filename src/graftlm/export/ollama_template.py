"""A Jinja chat template as Ollama's TEMPLATE, found by rendering probe messages.

Ollama renders one turn at a time, with the system text in the first:

    {{ if .System }}a{{ .System }}b{{ else }}c{{ end }}{{ .Prompt }}d{{ .Response }}e

The texts a to e are what stands around the probes. The result is then rendered for conversations
of one to three turns and must equal the chat template on each; a template that cannot be written so
is refused. A system text that the chat template adds by itself becomes the Modelfile's SYSTEM.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from graftlm.errors import ArtifactError

__all__ = ["OllamaTemplate", "ollama_template"]

SYSTEM, PROMPT, ANSWER = "§system§", "§prompt§", "§answer§"


@dataclasses.dataclass(frozen=True)
class OllamaTemplate:
    """The texts around system, prompt and answer.

    Attributes:
        before_system: a, ``None`` if the chat template takes no system turn.
        after_system: b.
        before_prompt: c.
        before_answer: d.
        after_answer: e.
        default_system: what the chat template says where the user gives no system text.
    """

    before_system: str | None
    after_system: str
    before_prompt: str
    before_answer: str
    after_answer: str
    default_system: str = ""

    def text(self) -> str:
        """The TEMPLATE, in the syntax of Go."""
        prompt = _quoted(self.before_prompt)
        if self.before_system is not None:
            before, after = _quoted(self.before_system), _quoted(self.after_system)
            prompt = f"{{{{ if .System }}}}{before}{{{{ .System }}}}{after}{{{{ else }}}}{prompt}"
            prompt += "{{ end }}"
        return (
            f"{prompt}{{{{ .Prompt }}}}{_quoted(self.before_answer)}"
            f"{{{{ .Response }}}}{_quoted(self.after_answer)}"
        )

    def rendered(self, messages: list[dict[str, str]]) -> str:
        """What Ollama would send for a conversation that ends with a user's turn."""
        text, system = "", self.default_system
        for message in messages:
            said = message["content"]
            if message["role"] == "system":
                system = said
            elif message["role"] == "user":
                if system and self.before_system is not None:
                    text += f"{self.before_system}{system}{self.after_system}"
                else:
                    text += self.before_prompt
                text += f"{said}{self.before_answer}"
                system = ""
            else:
                text += f"{said}{self.after_answer}"
        return text


def ollama_template(tokenizer: Any) -> OllamaTemplate:
    """The tokenizer's chat template in Ollama's form.

    Raises:
        ArtifactError: it has none, or it cannot be expressed.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ArtifactError("the tokenizer has no chat template, so Ollama would have none")
    first = _split(_render(tokenizer, _talk(PROMPT)), PROMPT)
    spoken = _render(tokenizer, _talk(PROMPT, ANSWER, PROMPT))
    before, answered = _split(spoken, ANSWER)
    after_answer, _, rest = answered.rpartition(PROMPT)
    if not before.endswith(f"{PROMPT}{first[1]}") or rest != first[1]:
        raise _inexpressible("an answer does not follow the text that asks for it")
    closed = _render(tokenizer, _talk(PROMPT, ANSWER), ask=False).partition(ANSWER)[2]
    if not after_answer.startswith(closed):
        raise _inexpressible("an answer ends differently in the middle and at the end")
    next_prompt = after_answer[len(closed) :]
    system, default = _system_of(tokenizer, first, next_prompt)
    found = OllamaTemplate(system[0], system[1], next_prompt, first[1], closed, default)
    for messages in (
        _talk(PROMPT),
        _talk(PROMPT, ANSWER, "two"),
        _talk("one", "1", "two", "2", "three"),
        *([_talk("one", "1", "two", system="be brief")] if system[0] is not None else []),
    ):
        if found.rendered(messages) != _render(tokenizer, messages):
            raise _inexpressible(f"a conversation of {len(messages)} messages would differ")
    return found


def _system_of(
    tokenizer: Any, first: tuple[str, str], next_prompt: str
) -> tuple[tuple[str | None, str], str]:
    """The texts around the system text, and the system text that is there by default."""
    try:
        with_system = _render(tokenizer, _talk(PROMPT, system=SYSTEM))
    except ArtifactError:
        with_system = ""
    if with_system.count(SYSTEM) != 1 or with_system.find(SYSTEM) > with_system.find(PROMPT):
        if first[0] != next_prompt:
            raise _inexpressible("the first turn begins differently from later ones")
        return (None, ""), ""
    before, rest = _split(with_system, SYSTEM)
    after = rest.partition(PROMPT)[0]
    if first[0] == next_prompt:
        return (before, after), ""
    if first[0].startswith(before) and first[0].endswith(after):
        return (before, after), first[0][len(before) : len(first[0]) - len(after)]
    raise _inexpressible("the first turn begins differently from later ones")


def _talk(*turns: str, system: str | None = None) -> list[dict[str, str]]:
    first = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return first + [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]


def _render(tokenizer: Any, messages: list[dict[str, str]], ask: bool = True) -> str:
    """The conversation without the begin token, which llama.cpp adds."""
    try:
        text: str = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=ask
        )
    except Exception as error:  # templates refuse by exceptions of their own
        raise ArtifactError(f"the chat template refuses a conversation: {error}") from error
    return text.removeprefix(tokenizer.bos_token or "")


def _split(text: str, probe: str) -> tuple[str, str]:
    if text.count(probe) < 1:
        raise _inexpressible("it changes the text of a message")
    before, _, after = text.partition(probe)
    return before, after


def _quoted(text: str) -> str:
    if '"""' in text:
        raise _inexpressible('it contains """, which ends a text in a Modelfile')
    return text.replace("{{", '{{ "{{" }}')


def _inexpressible(why: str) -> ArtifactError:
    return ArtifactError(
        f"the chat template cannot be written as a TEMPLATE of Ollama: {why}. Export `gguf`, which "
        "holds the chat template itself"
    )
