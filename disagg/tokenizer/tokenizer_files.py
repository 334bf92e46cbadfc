"""A model's tokenizer as SGLang builds it from tokenizer.json and tokenizer_config.json, which may contradict each
other.

Way:   model's folder -> [load_tokenizer] -> Codec
In:    both files, special_tokens_map.json, added_tokens.json, and the classes that they and config.json name
Out:   the ids that SGLang's `get_tokenizer` gives (0.5.20, transformers 5.12): a test compares over a table of
       configurations, and an engine compares again at its start (disagg/process/tokenizer_check.py)
Fails: StartError that names the file

What is done there and has to be done here: some classes (KINDS) take no more than vocabulary and merges from
tokenizer.json and make the rest themselves; SGLang then puts back pre-tokenizer and decoder where they are of another
kind; the flag add_bos_token of tokenizer_config.json counts for some classes, and is true where it is absent; special
tokens that only tokenizer_config.json names are added. Without transformers, whose import takes seconds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors

from disagg.errors import StartError
from disagg.models.text_files import read_object, read_text

FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Of these SGLang honours add_bos_token, under exactly these names, and takes an absent one for true.
ADD_BOS = {f"{name}Tokenizer{fast}" for name in ("Llama", "CodeLlama", "Gemma") for fast in ("", "Fast")}
ADD_BOS |= {"CohereTokenizerFast"}
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Model types for which transformers ignores the class that tokenizer_config.json names.
QWEN2_WHATEVER_SAID = frozenset({"qwen2"})

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """A class that makes its own tokenizer: what it makes of vocabulary and merges."""

    model: Mapping[str, Any]  # unk_token: None where the model has none, else the one that is named
    shape: Callable[[Tokenizer, Config], None]  # sets normalizer, pre_tokenizer, decoder
    special_tokens: Mapping[str, str] = field(default_factory=dict)  # where tokenizer_config.json names none
    bare_special_tokens: bool = False  # it adds them once more, so that no flags of theirs are left


def load_tokenizer(folder: Path) -> Tokenizer:
    """Without truncation and padding."""
    file, config = folder / FILE, read_object(folder / CONFIG)
    if not file.exists():
        would_do = (
            "convert the tokenizer with transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
        raise StartError(str(folder), "the model's folder has no tokenizer.json", would_do)
    text = read_text(file)
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # `tokenizers` raises nothing more particular
        raise StartError(str(file), f"is no tokenizer: {error}", "get the model again") from error
    kind = _kind(config, read_object(folder / "config.json"))
    tree = json.loads(text) if kind else {}
    if kind is not None and tree["model"].get("type") == "BPE":
        named = _named(folder, config, kind)
        tokenizer = _made_anew(tokenizer, tree, kind, named, config)
    else:
        named = _named(folder, config, None)
    _add_tokens(tokenizer, _added_tokens(folder, config, tree), named)
    if kind is not None and kind.bare_special_tokens:
        tokenizer.add_tokens([AddedToken(_content(token), special=True) for token in named.values()])
    if config.get("tokenizer_class") in ADD_BOS and config.get("add_bos_token") is not False:
        bos = named.get("bos_token")
        _put_bos_before(tokenizer, None if bos is None else _content(bos))
    if config.get("split_special_tokens"):
        tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _kind(config: Config, model: Config) -> Kind | None:
    said = config.get("tokenizer_class") or model.get("tokenizer_class")
    if model.get("model_type") in QWEN2_WHATEVER_SAID:
        said = "Qwen2Tokenizer"
    return KINDS.get(said.removesuffix("Fast")) if isinstance(said, str) else None


def _made_anew(raw: Tokenizer, tree: Config, kind: Kind, named: Mapping[str, Any], config: Config) -> Tokenizer:
    model = {"type": "BPE", **kind.model, "vocab": tree["model"]["vocab"], "merges": tree["model"]["merges"]}
    if "unk_token" in model:
        model["unk_token"] = _content(named["unk_token"])
    tokenizer = Tokenizer.from_str(json.dumps({"version": "1.0", "model": model, "added_tokens": []}))
    kind.shape(tokenizer, config)
    tokenizer.post_processor = raw.post_processor
    if raw.pre_tokenizer is not None and type(raw.pre_tokenizer) is not type(tokenizer.pre_tokenizer):
        tokenizer.pre_tokenizer, tokenizer.decoder = raw.pre_tokenizer, raw.decoder
    return tokenizer


def _named(folder: Path, config: Config, kind: Kind | None) -> dict[str, str | AddedToken]:
    """Special tokens by name, and those without one under their numbers."""
    said = with_map(folder, config)
    found: dict[str, str | AddedToken] = {}
    defaults = kind.special_tokens if kind else {}
    for name in (*SPECIAL_TOKENS, *(name for name in defaults if name not in SPECIAL_TOKENS)):
        token = said.get(name, defaults.get(name))
        if token is not None:
            found[name] = _token(token, special=True)
    more = said.get("extra_special_tokens", said.get("additional_special_tokens")) or []
    each = more.items() if isinstance(more, dict) else enumerate(more)
    found |= {str(name): _token(token, special=True) for name, token in each if token is not None}
    others = (name for name in said if name.endswith("_token") and name not in SPECIAL_TOKENS)
    return found | {name: said[name] for name in others if isinstance(said[name], str)}


def with_map(folder: Path, config: Config) -> Config:
    """special_tokens_map.json is older than `added_tokens_decoder`, and counts only where there is none."""
    return config if "added_tokens_decoder" in config else {**config, **read_object(folder / "special_tokens_map.json")}


def _token(said: Any, **more: Any) -> str | AddedToken:
    if not isinstance(said, dict):
        return str(said)
    fields = {name: said[name] for name in ("lstrip", "rstrip", "normalized", "single_word") if name in said}
    return AddedToken(said.get("content", ""), **fields, **more)


def _content(token: str | AddedToken) -> str:
    return token if isinstance(token, str) else str(token.content)


def _added_tokens(folder: Path, config: Config, tree: Config) -> Iterator[AddedToken]:
    """In the order of their ids."""
    said = config.get("added_tokens_decoder")
    if isinstance(said, dict):
        found = {int(index): token for index, token in said.items()}
    else:
        old = read_object(folder / "added_tokens.json")
        found = {index: {"content": text, "normalized": True} for text, index in old.items()}
        found |= {token["id"]: token for token in tree.get("added_tokens", [])}
    for _, token in sorted(found.items()):
        made = _token(token, special=bool(token.get("special", False)))
        assert isinstance(made, AddedToken)
        yield made


def _add_tokens(tokenizer: Tokenizer, added: Iterator[AddedToken], named: Mapping[str, str | AddedToken]) -> None:
    there = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    adding = list(added)  # those that are there, too: their flags may be others
    texts = there | {token.content for token in adding}
    for token in named.values():
        text = _content(token)
        if text and text not in texts:
            adding.append(AddedToken(token, special=True) if isinstance(token, str) else token)
            texts.add(text)
    specials = set(map(_content, named.values()))
    for token in adding:
        if token.content in specials:
            token.special = True
    if adding:
        tokenizer.add_tokens(adding)


def _put_bos_before(tokenizer: Tokenizer, bos: str | None) -> None:
    """Puts the BOS token in front of a text, and drops all that tokenizer.json would put around it."""
    if bos is None:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])
        return
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos}:0 $A:0",
        pair=f"{bos}:0 $A:0 {bos}:1 $B:1",
        special_tokens=[(bos, tokenizer.token_to_id(bos))],
    )


def _llama(tokenizer: Tokenizer, config: Config) -> None:
    _spaces(tokenizer, config, "always" if config.get("legacy") else "first")


def _spaces(tokenizer: Tokenizer, config: Config, scheme: str) -> None:
    space = config.get("add_prefix_space") is not False
    scheme = scheme if space else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    ends = [decoders.Strip(content=" ", left=1)] if space else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *ends])


def _gemma(tokenizer: Tokenizer, _config: Config) -> None:
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern=" ", behavior="merged_with_previous", invert=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])


def _qwen2(tokenizer: Tokenizer, config: Config) -> None:
    space = bool(config.get("add_prefix_space"))
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated", invert=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=space, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()


def _gpt2(tokenizer: Tokenizer, config: Config) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space")))
    tokenizer.decoder = decoders.ByteLevel()


def _gpt_neox(tokenizer: Tokenizer, config: Config) -> None:
    _gpt2(tokenizer, config)
    tokenizer.normalizer = normalizers.NFC()


def _cohere(tokenizer: Tokenizer, config: Config) -> None:
    tokenizer.normalizer = normalizers.NFC()
    letters = pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space")))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), letters])
    tokenizer.decoder = decoders.ByteLevel()


def _tokens(**texts: str) -> dict[str, str]:
    return {f"{name}_token": text for name, text in texts.items()}


_BYTES = {"continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False}
_PIECES = {"fuse_unk": True, "byte_fallback": True}
_END = "<|endoftext|>"
KINDS = {
    "LlamaTokenizer": Kind(_PIECES, _llama, _tokens(unk="<unk>", bos="<s>", eos="</s>")),
    "CodeLlamaTokenizer": Kind(
        {**_PIECES, "unk_token": "<unk>"},
        partial(_spaces, scheme="first"),
        _tokens(unk="<unk>", bos="<s>", eos="</s>", prefix="▁<PRE>", middle="▁<MID>", suffix="▁<SUF>")
        | _tokens(eot="▁<EOT>", fill="<FILL_ME>"),
    ),
    "GemmaTokenizer": Kind(
        {**_PIECES, "unk_token": "<unk>"},
        _gemma,
        _tokens(unk="<unk>", bos="<bos>", eos="<eos>", pad="<pad>", mask="<mask>"),
    ),
    "Qwen2Tokenizer": Kind(_BYTES, _qwen2, _tokens(unk=_END, eos=_END, pad=_END), bare_special_tokens=True),
    "GPTNeoXTokenizer": Kind(_BYTES, _gpt_neox, _tokens(unk=_END, bos=_END, eos=_END, pad="<|padding|>")),
    "CohereTokenizer": Kind(
        _BYTES,
        _cohere,
        _tokens(bos="<BOS_TOKEN>", eos="<|END_OF_TURN_TOKEN|>", unk="<UNK>", sep="<SEP>", pad="<PAD>", cls="<CLS>")
        | _tokens(mask="<MASK_TOKEN>"),
    ),
    "GPT2Tokenizer": Kind(_BYTES, _gpt2, _tokens(unk=_END, bos=_END, eos=_END)),
}
