"""Built-in chat templates, for tokenizers without one.

They are Jinja templates, rendered by transformers. The chosen one becomes the tokenizer's
``chat_template``, so that saving the tokenizer records it and every other tool renders the same.

``END`` represents the marker that ends an answer. If the vocabulary of a base model lacks the
marker, the model's own end token replaces it: the model can stop, and needs no new token.
"""

from __future__ import annotations

import json
from typing import Any

from graftlm.errors import ConfigError, DataError, near_matches

__all__ = ["BUILT_IN", "built_in_name", "family_template", "plain_template", "template_text"]

_CHATML = """\
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] + '\\n\\n' }}{%- endif %}
{{- '# Tools\\n\\nYou may call these functions:\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
{{- '\\n</tools>\\n\\nTo call one, answer with <tool_call>\\n' }}
{{- '{"name": ..., "arguments": ...}\\n</tool_call><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if not (tools and loop.first and message['role'] == 'system') %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] }}
{%- for call in message['tool_calls'] or [] %}
{{- '\\n' if message['content'] or not loop.first else '' }}
{{- '<tool_call>\\n' + ({'name': call['function']['name'],
    'arguments': call['function']['arguments']} | tojson) + '\\n</tool_call>' }}
{%- endfor %}
{{- END if message['role'] == 'assistant' else '<|im_end|>' }}{{- '\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

_LLAMA3 = """\
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] }}
{{- END if message['role'] == 'assistant' else '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

_SYSTEM_INTO_USER = """\
{%- set ns = namespace(system='') %}
{%- for message in messages %}
{%- if message['role'] == 'system' %}
{%- set ns.system = ns.system + message['content'] + '\\n\\n' %}
{%- elif message['role'] == 'assistant' %}
ANSWER
{%- else %}
QUESTION
{%- set ns.system = '' %}
{%- endif %}
{%- endfor %}"""


def _system_into_user(question: str, answer: str) -> str:
    """A template for a format without system turns: the system text begins the next question."""
    return _SYSTEM_INTO_USER.replace("QUESTION", question).replace("ANSWER", answer)


_GEMMA = (
    _system_into_user(
        "{{- '<start_of_turn>user\\n' + ns.system + message['content'] + '<end_of_turn>\\n' }}",
        "{{- '<start_of_turn>model\\n' + message['content'] + END + '\\n' }}",
    )
    + "{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"
)

_MISTRAL = _system_into_user(
    "{{- '[INST] ' + ns.system + message['content'] + ' [/INST]' }}",
    "{{- ' ' + message['content'] + END }}",
)

_ALPACA = """\
{%- set intro = 'Below is an instruction that describes a task. Write a response that \
appropriately completes the request.' %}
{%- if messages[0]['role'] != 'system' %}{{- intro + '\\n\\n' }}{%- endif %}
{%- for message in messages %}
{%- if message['role'] == 'system' %}{{- message['content'] + '\\n\\n' }}
{%- elif message['role'] == 'assistant' %}
{{- '### Response:\\n' + message['content'] + END + '\\n\\n' }}
{%- else %}{{- '### Instruction:\\n' + message['content'] + '\\n\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '### Response:\\n' }}{%- endif %}"""

_VICUNA = """\
{%- for message in messages %}
{%- if message['role'] == 'system' %}{{- message['content'] + '\\n\\n' }}
{%- elif message['role'] == 'assistant' %}{{- 'ASSISTANT: ' + message['content'] + END + '\\n' }}
{%- else %}{{- 'USER: ' + message['content'] + '\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'ASSISTANT: ' }}{%- endif %}"""

_PLAIN = """\
{%- for message in messages %}
{{- message['content'] }}
{{- END if message['role'] == 'assistant' else (SEPARATOR if message['content'] else '') }}
{%- endfor %}"""

BUILT_IN: dict[str, tuple[str, str | None]] = {
    "alpaca": (_ALPACA, None),
    "chatml": (_CHATML, "<|im_end|>"),
    "gemma": (_GEMMA, "<end_of_turn>"),
    "llama3": (_LLAMA3, "<|eot_id|>"),
    "mistral": (_MISTRAL, None),
    "plain": (_PLAIN.replace("SEPARATOR", "'\\n'"), None),
    "vicuna": (_VICUNA, None),
}
"""Name → (template, end marker; ``None`` for the tokenizer's own end token)."""

_FAMILY_MARKERS = {
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "mistral": ("[INST]", "[/INST]"),
}


def family_template(tokenizer: Any) -> str:
    """The built-in whose markers are single tokens in this vocabulary, otherwise ``plain``."""
    vocabulary = tokenizer.get_vocab()
    for name, markers in _FAMILY_MARKERS.items():
        if all(marker in vocabulary for marker in markers):
            return name
    return "plain"


def built_in_name(tokenizer: Any) -> str | None:
    """The built-in that the tokenizer has as its template, if it is one."""
    texts = ((name, template_text(name, tokenizer)) for name in BUILT_IN)
    return next((name for name, text in texts if text == tokenizer.chat_template), None)


def template_text(name: str, tokenizer: Any) -> str:
    """The built-in's Jinja text with a tokenizer's end marker, and its bos if it adds one.

    Raises:
        ConfigError: there is no such built-in.
        DataError: the tokenizer has no end token to close an answer with.
    """
    if name not in BUILT_IN:
        raise ConfigError(
            f"chat_template {name!r} is not built in; expected auto, own or one of "
            f"{', '.join(sorted(BUILT_IN))}{near_matches(name, BUILT_IN)}"
        )
    text, end = BUILT_IN[name]
    if end is None or end not in tokenizer.get_vocab():
        end = tokenizer.eos_token
    return _fitted(text, end, tokenizer)


def plain_template(separator: str, tokenizer: Any) -> str:
    """Messages as plain text: the question, the separator, the answer, the end token."""
    text = _fitted(_PLAIN, tokenizer.eos_token, tokenizer)
    return text.replace("SEPARATOR", json.dumps(separator, ensure_ascii=False))


def _fitted(text: str, end: str | None, tokenizer: Any) -> str:
    if end is None:
        raise DataError(
            "the tokenizer has no end token, so a model could never learn to stop. "
            "Set eos_token in its tokenizer_config.json."
        )
    with_bos = tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    bos = "{{- bos_token }}" if with_bos and tokenizer.bos_token else ""
    return bos + text.replace("END", json.dumps(end, ensure_ascii=False))
