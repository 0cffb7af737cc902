"""Tiny tokenizers of the model families, rebuilt: same machinery, same chat template, small vocab.

Each family says what a model of it has to produce for an answer (``answer``), independently of the
code under test.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "The quick brown fox says hello there, and the answer is 42.\n\nYes: it is.\n",
    "user\nHello there!\nassistant\nHello! How are you?\n model\nHi, hi.\n\n\n  indented  text\t\n",
    "Xin chào, tôi muốn đặt bàn cho bốn người. Đơn hàng của tôi bị hỏng.\n",
    'def f(x):\n    return x + 1\n\n\n{"name": "book", "arguments": {"n": 4}}\n',
    "USER: a ASSISTANT: b [INST] c [/INST] d ### Response:\n e 你好世界 😀 é e\u0301\n",
]
GPT4_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def strip(content: str) -> str:
    return content.strip()


def same(content: str) -> str:
    return content


@dataclass(frozen=True)
class Family:
    build: Callable[[], Tokenizer]
    template: str | None
    end: str
    """What closes an answer in the text; the appended end token where the template has none."""
    seen: Callable[[str], str] = same
    """What the template makes of an answer's content."""
    before: str = ""
    """What stands between the generation prompt and the content."""
    bos: str | None = "<s>"
    eos: str = "</s>"
    special: tuple[str, ...] = ()
    swallows: bool = False
    """Its markers swallow the spaces after them (rstrip)."""
    system: bool = True


def byte_level(trim: bool = False, gpt4: bool = False, prefix: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=not gpt4)
    split = [pre_tokenizers.Split(Regex(GPT4_SPLIT), "isolated")] if gpt4 else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return tokenizer


def sentencepiece(prepend: bool, merges_anything: bool = False) -> Tokenizer:
    """Llama-2's and Gemma's kind: spaces become ▁, unknown characters become bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    replace = normalizers.Replace(" ", "▁")
    steps = [normalizers.Prepend("▁"), replace] if prepend else [replace]
    tokenizer.normalizer = normalizers.Sequence(steps)
    if not merges_anything:  # train on words, so that few merges cross lines
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<unk>", *bytes_], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.pre_tokenizer = None
    return tokenizer


def metaspace() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<unk>", *bytes_], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "never")
    trainer = trainers.UnigramTrainer(
        vocab_size=400, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return tokenizer


LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
    "{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% else %}{% set rest = messages %}{% set system = '' %}{% endif %}"
    "{% for message in rest %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + (system if loop.first else '')"
    " + message['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    " + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + '[/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + eos_token }}{% else %}"
    "{{ raise_exception('only user and assistant roles') }}{% endif %}{% endfor %}"
)
QWEN2 = (
    "{%- if messages[0]['role'] != 'system' %}"
    "{{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}{%- if message.role != 'assistant' or not message.tool_calls %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- else %}{{- '<|im_start|>' + message.role }}"
    "{%- if message.content %}{{- '\\n' + message.content }}{%- endif %}"
    "{%- for tool_call in message.tool_calls %}{%- set tool_call = tool_call.function %}"
    '{{- \'\\n<tool_call>\\n{"name": "\' + tool_call.name + \'", "arguments": \''
    " + (tool_call.arguments | tojson) + '}\\n</tool_call>' }}{%- endfor %}"
    "{{- '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
QWEN3 = (
    "{%- set ns = namespace(last=-1) %}{%- for message in messages %}"
    "{%- if message.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for message in messages %}{%- set content = message.content %}"
    "{%- if message.role == 'assistant' %}{%- set reasoning = '' %}"
    "{%- if '</think>' in content %}"
    "{%- set reasoning = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{{- '<|im_start|>assistant\\n' }}{%- if loop.index0 > ns.last %}"
    "{{- '<think>\\n' + reasoning + '\\n</think>\\n\\n' }}{%- endif %}"
    "{{- content.lstrip('\\n') + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
PHI3 = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
FALCON = (
    "{% for message in messages %}{% if not loop.first %}{{ '\\n\\n' }}{% endif %}"
    "{{ ('Falcon' if message['role'] == 'assistant' else message['role'] | capitalize) + ': '"
    " + message['content'] }}{% endfor %}{% if add_generation_prompt %}{{ '\\n\\nFalcon:' }}"
    "{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content']"
    " + eos_token + '\\n' }}{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}"
    "{% endif %}{% endfor %}"
)
DEEPSEEK = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '<｜User｜>' + message['content'] }}{% elif message['role'] == 'assistant' %}"
    "{{ '<｜Assistant｜>' + message['content'] + eos_token }}{% else %}{{ message['content'] }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
)
COMMAND = (
    "{{ bos_token }}{% for message in messages %}{{ '<|START_OF_TURN_TOKEN|><|'"
    " + ('CHATBOT' if message['role'] == 'assistant' else message['role'] | upper) + '_TOKEN|>'"
    " + message['content'].strip() + '<|END_OF_TURN_TOKEN|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"
)
NO_PROMPT = (  # ignores add_generation_prompt, as many older templates do
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n'"
    " + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
)

IM = ("<|im_start|>", "<|im_end|>")
HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
TURNS = ("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|USER_TOKEN|>")

FAMILIES = {
    "llama2": Family(lambda: sentencepiece(True), LLAMA2, " </s>", strip, " "),
    "llama3": Family(lambda: byte_level(gpt4=True), LLAMA3, "<|eot_id|>", strip, special=HEADERS),
    "mistral": Family(
        metaspace, MISTRAL, "</s>", same, " ", special=("[INST]", "[/INST]"), system=False
    ),
    "qwen2": Family(
        lambda: byte_level(gpt4=True), QWEN2, "<|im_end|>", bos=None, eos="<|im_end|>", special=IM
    ),
    "qwen3": Family(
        lambda: byte_level(gpt4=True),
        QWEN3,
        "<|im_end|>",
        lambda content: content.lstrip("\n"),
        bos=None,
        eos="<|endoftext|>",
        special=IM,
    ),
    "gemma": Family(
        lambda: sentencepiece(False, merges_anything=True),
        GEMMA,
        "<end_of_turn>",
        strip,
        special=("<start_of_turn>", "<end_of_turn>"),
        system=False,
    ),
    "phi3": Family(lambda: sentencepiece(True), PHI3, "<|end|>", special=ROLES, swallows=True),
    "falcon": Family(byte_level, FALCON, "", same, " ", bos=None, eos="<|endoftext|>"),
    "zephyr": Family(lambda: sentencepiece(True), ZEPHYR, "</s>"),
    "deepseek": Family(
        byte_level,
        DEEPSEEK,
        "<｜end▁of▁sentence｜>",
        bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
        special=("<｜User｜>", "<｜Assistant｜>"),
    ),
    "command": Family(
        lambda: byte_level(trim=True), COMMAND, "<|END_OF_TURN_TOKEN|>", strip, special=TURNS
    ),
    "older": Family(byte_level, NO_PROMPT, "<|im_end|>", special=IM),
}
BASES = {
    "gpt2": Family(byte_level, None, "", bos="<|endoftext|>", eos="<|endoftext|>"),
    "opt": Family(lambda: byte_level(trim=True), None, "", eos="</s>"),
    "llama": Family(lambda: sentencepiece(True), None, ""),
    "gemma": FAMILIES["gemma"],
    "unigram": Family(unigram, None, ""),
}


@functools.lru_cache
def _tokenizer_json(build_key: str) -> str:
    group, name = build_key.split("/")
    family = (FAMILIES if group == "chat" else BASES)[name]
    plain = json.loads(family.build().to_str())
    plain["added_tokens"] = []  # byte tokens are ordinary tokens, the trainer's word aside
    tokenizer = Tokenizer.from_str(json.dumps(plain))
    names = dict.fromkeys([n for n in (family.bos, family.eos, *family.special) if n])
    tokenizer.add_special_tokens(
        [AddedToken(n, rstrip=family.swallows, normalized=False, special=True) for n in names]
    )
    if family.bos is not None and name not in ("gpt2", "falcon"):
        tokenizer.post_processor = processors.Sequence(
            [
                *([tokenizer.post_processor] if tokenizer.post_processor else []),
                processors.TemplateProcessing(
                    single=f"{family.bos} $A",
                    pair=f"{family.bos} $A $B",
                    special_tokens=[(family.bos, tokenizer.token_to_id(family.bos))],
                ),
            ]
        )
    return tokenizer.to_str()


def tokenizer_of(name: str, *, base: bool = False) -> PreTrainedTokenizerFast:
    """A fresh tokenizer of a family; ``base`` takes those without a chat template."""
    family = (BASES if base else FAMILIES)[name]
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(
            _tokenizer_json(f"{'base' if base else 'chat'}/{name}")
        ),
        bos_token=family.bos,
        eos_token=family.eos,
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = None if base else family.template
    return made


def readable(tokenizer: PreTrainedTokenizerFast, text: str) -> str:
    """The text as far as the vocabulary can tell: for SentencePiece, ▁ is a space."""
    return text.replace("▁", " ") if "<0x41>" in tokenizer.get_vocab() else text


def text_of(tokenizer: PreTrainedTokenizerFast, ids: object) -> str:
    """The text tokens stand for, exactly: no space stripped, bytes joined."""
    specials = set(tokenizer.get_added_vocab())
    byte_decoder = {c: b for b, c in _bytes_to_unicode().items()}
    spm = "<0x41>" in tokenizer.get_vocab()
    data = b""
    for token in tokenizer.convert_ids_to_tokens([int(i) for i in ids]):
        if token in specials:
            data += token.encode()
        elif spm:
            byte = token.startswith("<0x") and len(token) == 6
            data += bytes([int(token[3:5], 16)]) if byte else token.replace("▁", " ").encode()
        else:
            data += bytes(byte_decoder[c] for c in token)
    return data.decode("utf-8", errors="replace")


def _bytes_to_unicode() -> dict[int, str]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return bytes_to_unicode()
