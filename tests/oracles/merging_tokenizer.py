"""Small tokenizers with merges, of the two kinds that GGUF holds, trained on the spot."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["bpe_tokenizer", "sentencepiece_like_tokenizer"]

TEXT = ["the quick brown fox jumps over the lazy dog; xin chào các bạn, tiếng Việt 123"] * 20
SPECIAL = ["<unk>", "<s>", "</s>"]


def bpe_tokenizer(vocab_size: int = 320) -> Any:
    """Byte-level BPE that splits words as GPT-2 does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL, initial_alphabet=alphabet
    )
    backend.train_from_iterator(TEXT, trainer)
    return _wrapped(backend)


def sentencepiece_like_tokenizer(vocab_size: int = 400) -> Any:
    """BPE with byte fallback over words that begin with ▁, as converted from SentencePiece."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    # Without a pre-tokenizer a merge could cross words; SentencePiece's never do.
    words = [word for text in TEXT for word in text.split(" ")]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[*SPECIAL, *bytes_])
    backend.train_from_iterator(words, trainer)
    described = json.loads(backend.to_str())
    described["added_tokens"] = [t for t in described["added_tokens"] if t["content"] in SPECIAL]
    _merge_every_cut(described["model"])
    return _wrapped(Tokenizer.from_str(json.dumps(described)))


def _merge_every_cut(model: Any) -> None:
    """A token is merged from each two tokens that give it, as in a conversion of SentencePiece."""
    joined = dict.fromkeys("".join(pair) for pair in model["merges"])
    model["merges"] = [
        [token[:i], token[i:]]
        for token in joined
        for i in range(1, len(token))
        if token[:i] in model["vocab"] and token[i:] in model["vocab"]
    ]


def _wrapped(backend: Any) -> Any:
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
