"""A Jinja chat template as Ollama's TEMPLATE, found by rendering probe messages.

Ollama runs a template of Go over all messages of a conversation. The one written here is

    {{ if .System }}a{{ .System }}b{{ else }}c{{ end }}      before the first question
    for each message but a system text:
        user        its text, then: ask if it is the last message, else past
        assistant   its text, then: between if it is not the last message

The letters and names are the texts that stand around the probes. They differ where a chat template
treats an answer that it is asked for (ask) otherwise than one that was given (past): Mistral's puts
a space before the latter, Qwen3's removes what was thought. Where the system text stands in the
last question, as in Mistral's, it is written there instead.

The result is rendered for conversations of one to seven messages and must equal the chat template
on each; a template that cannot be written so is refused. A system text that the chat template adds
by itself becomes the Modelfile's SYSTEM. Source: Ollama's docs/template.md, read in 2026.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from graftlm.data.messages import RowError
from graftlm.data.rendering import Template
from graftlm.errors import ArtifactError

__all__ = ["OllamaTemplate", "ollama_template"]

SYSTEM, PROMPT, ANSWER, NEXT = "§system§", "§prompt§", "§answer§", "§next§"
LAST = "eq (len (slice $.Messages $i)) 1"
"""In Go: whether the message at ``$i`` is the last."""


@dataclasses.dataclass(frozen=True)
class OllamaTemplate:
    """The texts around system, prompt and answer.

    Attributes:
        before_system: a; ``None`` if the chat template takes no system text.
        after_system: b.
        system_last: whether the system text stands in the last question; ``c`` is then before the
            first one in any case.
        before_first: c.
        ask: what follows the last question.
        past: what follows a question that was answered.
        between: what follows an answer, up to the next question.
        default_system: what the chat template says where the user gives no system text.
    """

    before_system: str | None
    after_system: str
    system_last: bool
    before_first: str
    ask: str
    past: str
    between: str
    default_system: str = ""

    def text(self) -> str:
        """The TEMPLATE, in the syntax of Go."""
        first, system = _quoted(self.before_first), ""
        if self.before_system is not None:
            said = f"{_quoted(self.before_system)}{{{{ $.System }}}}{_quoted(self.after_system)}"
            if self.system_last:
                system = f"{{{{ if and $.System ({LAST}) }}}}{said}{{{{ end }}}}"
            else:
                first = f"{{{{ if .System }}}}{said}{{{{ else }}}}{first}{{{{ end }}}}"
        return (
            f"{first}{{{{ range $i, $_ := .Messages }}}}"
            f'{{{{ if eq .Role "user" }}}}{system}{{{{ .Content }}}}'
            f"{{{{ if {LAST} }}}}{_quoted(self.ask)}{{{{ else }}}}{_quoted(self.past)}{{{{ end }}}}"
            f'{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}'
            f"{{{{ if not ({LAST}) }}}}{_quoted(self.between)}{{{{ end }}}}"
            "{{ end }}{{ end }}"
        )

    def rendered(self, messages: list[dict[str, str]]) -> str:
        """What Ollama makes of a conversation that ends with a user's message."""
        given = [message["content"] for message in messages if message["role"] == "system"]
        system = "\n\n".join(given) or self.default_system
        if self.before_system is None:
            system = ""
        said = f"{self.before_system}{system}{self.after_system}" if system else ""
        text = said if said and not self.system_last else self.before_first
        for place, message in enumerate(messages):
            last = place == len(messages) - 1
            if message["role"] == "user":
                text += said if last and self.system_last else ""
                text += message["content"] + (self.ask if last else self.past)
            elif message["role"] == "assistant":
                text += message["content"] + ("" if last else self.between)
        return text

    @property
    def after_answer(self) -> str:
        """``between`` without what begins the next question, which also begins the first."""
        short, place = min(len(self.between), len(self.before_first)), 0
        while place < short and self.between[-place - 1] == self.before_first[-place - 1]:
            place += 1
        return self.between[: len(self.between) - place] or self.between


def ollama_template(tokenizer: Any) -> OllamaTemplate:
    """The tokenizer's chat template in Ollama's form.

    Raises:
        ArtifactError: it has none, or it cannot be expressed.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ArtifactError("the tokenizer has no chat template, so Ollama would have none")
    first, ask = _around(_render(tokenizer, _talk(PROMPT)), PROMPT)
    again, past, between, asked = _around(
        _render(tokenizer, _talk(PROMPT, ANSWER, NEXT)), PROMPT, ANSWER, NEXT
    )
    if (again, asked) != (first, ask):
        raise _inexpressible("the text around a question depends on the messages before it")
    plain = OllamaTemplate(None, "", False, first, ask, past, between)
    found = _with_system(tokenizer, plain)
    tried = [("one",), ("one", "1", "two"), ("one", "1", "two", "2", "3 {{ x }}", "3", "four")]
    for turns in tried:
        for system in (None, *(["be brief"] if found.before_system is not None else [])):
            messages = _talk(*turns, system=system)
            if found.rendered(messages) != _render(tokenizer, messages):
                raise _inexpressible(f"a conversation of {len(messages)} messages would differ")
    return found


def _with_system(tokenizer: Any, plain: OllamaTemplate) -> OllamaTemplate:
    """``plain`` with the texts around the system text, if the chat template takes one."""
    try:
        alone = _render(tokenizer, _talk(PROMPT, system=SYSTEM))
        later = _render(tokenizer, _talk(PROMPT, ANSWER, NEXT, system=SYSTEM))
    except ArtifactError:
        return plain
    if alone.count(SYSTEM) != 1 or later.count(SYSTEM) != 1:
        return plain
    before, after, _ = _around(alone, SYSTEM, PROMPT)
    if later.find(SYSTEM) < later.find(PROMPT):
        first = plain.before_first
        whole = first.startswith(before) and first.endswith(after)
        default = first[len(before) : len(first) - len(after)] if whole else ""
        return dataclasses.replace(
            plain, before_system=before, after_system=after, default_system=default
        )
    if not before.startswith(plain.before_first):
        raise _inexpressible("a system text changes what is before it")
    inside = before[len(plain.before_first) :]
    return dataclasses.replace(plain, before_system=inside, after_system=after, system_last=True)


def _talk(*turns: str, system: str | None = None) -> list[dict[str, str]]:
    first = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return first + [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]


def _render(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """The conversation without the begin token, which llama.cpp adds."""
    try:
        text = Template(tokenizer, "the adapter's").apply(messages, None, True)
    except RowError as error:
        raise ArtifactError(str(error)) from error
    return text.removeprefix(tokenizer.bos_token or "")


def _around(text: str, *probes: str) -> list[str]:
    """The texts before, between and after the probes."""
    parts = []
    for probe in probes:
        if text.count(probe) != 1:
            raise _inexpressible("it leaves out, repeats or changes the text of a message")
        before, _, text = text.partition(probe)
        parts.append(before)
    return [*parts, text]


def _quoted(text: str) -> str:
    if '"""' in text:
        raise _inexpressible('it contains """, which ends a text in a Modelfile')
    return text.replace("{", '{{ "{" }}')


def _inexpressible(why: str) -> ArtifactError:
    return ArtifactError(
        f"the chat template cannot be written as a TEMPLATE of Ollama: {why}. Export `gguf`, which "
        "holds the chat template itself"
    )
