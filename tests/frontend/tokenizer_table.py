"""Small tokenizers of every kind that tokenizer.json and tokenizer_config.json can describe together."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TRAINING = ["Who are you? I am a token, you're 12 words; hello world. Gr\u00f6\u00dfe \u65e5\u672c def f(x): x\n"] * 3
TEXTS = [
    *("Who are you?", "", " leading", "two  spaces\n\n", "<s>mid<s>dle</s>", "x<special> y", "a <strip> b", "a <s> b"),
    *("12345 e\u0301 \u65e5\u672c \U0001f3be", "<norm>al <word>s <word>", "<|endoftext|>it's"),
]
SPECIALS = ["<unk>", "<s>", "</s>"]
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
ADDED = (
    AddedToken("<special>", special=True),
    AddedToken("<strip>", lstrip=True, rstrip=True),
    AddedToken("<norm>", normalized=True),
    AddedToken("<word>", single_word=True),
)
CLASSES = [
    *("LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "GemmaTokenizer", "GemmaTokenizerFast"),
    *("PreTrainedTokenizerFast", "TokenizersBackend", "PreTrainedTokenizer", "NoSuchTokenizer", None),
    *("Qwen2Tokenizer", "Qwen2TokenizerFast", "GPT2Tokenizer", "GPTNeoXTokenizerFast", "CohereTokenizerFast"),
]
FLAGS: list[dict[str, Any]] = [
    {"add_bos_token": True},
    {"add_bos_token": False},
    {"add_bos_token": None},
    {"add_eos_token": True},
    {"add_bos_token": False, "add_eos_token": True},
    {"legacy": True},
    {"legacy": False},
    {"add_prefix_space": True},
    {"add_prefix_space": False},
    {"clean_up_tokenization_spaces": True},
    {"split_special_tokens": True},
    {"pad_token": "12", "additional_special_tokens": ["Who"], "image_token": "you"},
    {"extra_special_tokens": {"a_token": "Who"}},
    {"bos_token": None},
    {"added_tokens_decoder": {"900": {"content": "words", "lstrip": True, "normalized": False, "special": False}}},
    {"added_tokens_decoder": {"1": {"content": "<s>", "lstrip": True, "rstrip": True, "special": True}}},
    {"bos_token": {"__type": "AddedToken", "content": "<s>", "rstrip": True, "normalized": False}},
]


@cache
def base(kind: str) -> str:
    """bytes, split (also by digits), metaspace (newer Llama), prepend (older Llama: a normalizer)."""
    if kind in ("bytes", "split"):
        tokenizer = Tokenizer(models.BPE())
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False)
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = letters if kind == "bytes" else pre_tokenizers.Sequence([digits, letters])
        tokenizer.decoder = decoders.ByteLevel()
        size, first = 320, SPECIALS
    else:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        if kind == "metaspace":
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        else:
            steps = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
            tokenizer.normalizer = normalizers.Sequence(steps)
        fused = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        tokenizer.decoder = decoders.Sequence(fused)
        size, first = 420, SPECIALS + [f"<0x{byte:02X}>" for byte in range(256)]
    alphabet = pre_tokenizers.ByteLevel.alphabet() if kind in ("bytes", "split") else []
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=first, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TRAINING, trainer)
    tree = json.loads(tokenizer.to_str())
    tree["added_tokens"] = tree["added_tokens"][: len(SPECIALS)]
    return json.dumps(tree)


def _template(single: str, name: str, token_id: int) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(single=single, pair=f"{single} $B", special_tokens=[(name, token_id)])


POSTS: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "bos": lambda: _template("<s> $A", "<s>", 1),
    "eos": lambda: _template("$A </s>", "</s>", 2),
    "bytes": lambda: processors.ByteLevel(trim_offsets=False),
    "sequence": lambda: processors.Sequence([processors.ByteLevel(trim_offsets=False), _template("<s> $A", "<s>", 1)]),
}


def made(kind: str, post: str = "none") -> Tokenizer:
    tokenizer = Tokenizer.from_str(base(kind))
    tokenizer.add_tokens(list(ADDED))
    if (processor := POSTS[post]()) is not None:
        tokenizer.post_processor = processor
    return tokenizer


def write_table(root: Path) -> Iterator[tuple[str, Path]]:
    """Name and folder of each configuration."""
    count = 0

    def folder(
        name: str, tokenizer: Tokenizer, config: dict[str, Any] | None, model: Any = None, **files: Any
    ) -> tuple[str, Path]:
        nonlocal count
        count += 1
        here = root / str(count)
        here.mkdir()
        tokenizer.save(str(here / "tokenizer.json"))
        texts = {"config": model or {"model_type": "llama"}, "tokenizer_config": config, **files}
        for file, content in texts.items():
            if content is not None:
                (here / f"{file}.json").write_text(json.dumps(content))
        return name, here

    for said in CLASSES:
        config = NAMES | ({"tokenizer_class": said} if said else {})
        for kind, posts in (
            ("bytes", POSTS),
            ("split", ["none"]),
            ("metaspace", ["none"]),
            ("prepend", ["none", "bos"]),
        ):
            for post in posts:
                yield folder(f"{said}, {kind}, post {post}", made(kind, post), config)
    for said in ("LlamaTokenizerFast", "PreTrainedTokenizerFast", "Qwen2Tokenizer", "GemmaTokenizer"):
        for kind in ("bytes", "prepend") if said == "LlamaTokenizerFast" else ("bytes",):
            for flags in FLAGS:
                config = NAMES | {"tokenizer_class": said} | flags
                yield folder(f"{said}, {kind}, {flags}", made(kind, "bos"), config)
        for model_type in ("qwen2", "qwen3", "deepseek_v3", "gemma2", "mistral", "phi3", "glm4", "nothing-known"):
            model = {"model_type": model_type}
            yield folder(f"{said}, {model_type}", made("bytes"), NAMES | {"tokenizer_class": said}, model)
        yield folder(f"{said}, nothing named", made("bytes"), {"tokenizer_class": said})
        old = {
            "bos_token": "<s>",
            "eos_token": {"content": "Who", "lstrip": False},
            "additional_special_tokens": ["you"],
        }
        yield folder(f"{said}, old map", made("bytes"), {"tokenizer_class": said}, special_tokens_map=old)
        config = {"tokenizer_class": said, "bos_token": "</s>"}
        yield folder(f"{said}, old map over", made("bytes"), config, special_tokens_map={"bos_token": "<s>"})
        newer: dict[str, Any] = config | {"added_tokens_decoder": {}}
        yield folder(f"{said}, old map beside a newer", made("bytes"), newer, special_tokens_map=old)
        yield folder(f"{said}, old added", made("bytes"), NAMES | {"tokenizer_class": said}, added_tokens={"Who": 324})
    model = {"model_type": "llama", "tokenizer_class": "LlamaTokenizerFast"}
    yield folder("class of config.json", made("bytes"), NAMES, model)
    lower = made("bytes")
    lower.normalizer = normalizers.Lowercase()
    for said in ("LlamaTokenizerFast", "PreTrainedTokenizerFast", "Qwen2Tokenizer"):
        yield folder(f"{said}, a normalizer", lower, NAMES | {"tokenizer_class": said})
    cut = made("bytes", "bos")
    cut.enable_truncation(5)
    cut.enable_padding(length=8)
    yield folder("truncation", cut, NAMES | {"tokenizer_class": "PreTrainedTokenizerFast"})
