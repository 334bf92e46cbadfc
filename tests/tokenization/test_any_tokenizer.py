"""A tokenizer that is Python all through, which no frontend can read, works in an engine's host as any other does."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from scripted import TEMPLATE
from two_frontends import scene

from disagg.errors import StartError
from disagg.plane.messages import Shown, TextWanted
from disagg.tokenizer.any_tokenizer import load_any
from disagg.tokenizer.codec import Codec, load_codec
from disagg.tokenizer.given_text import GivenText
from disagg.tokenizer.leg_text import LegText

# Of bytes, as tiktoken's are: `raw` gives tokens as bytes (Qwen's first), `letters` in GPT-2's letters (Kimi's).
CODE = """
from transformers import PreTrainedTokenizer
from disagg.tokenizer.token_bytes import LETTERS

OF_BYTE = {byte: letter for letter, byte in LETTERS.items()}

class ByteTokenizer(PreTrainedTokenizer):
    vocab_files_names = {}
    def __init__(self, raw=False, **more):
        self.raw = raw
        super().__init__(**more)
    @property
    def vocab_size(self):
        return 256
    def get_vocab(self):
        return {OF_BYTE[byte]: byte for byte in range(256)} | self.added_tokens_encoder
    def _tokenize(self, text, **_):
        return [OF_BYTE[byte] for byte in text.encode()]
    def _convert_token_to_id(self, token):
        return LETTERS.get(token)
    def _convert_id_to_token(self, index):
        return bytes([index]) if self.raw else OF_BYTE[index]
    def convert_tokens_to_string(self, tokens):
        return b"".join(each if isinstance(each, bytes) else bytes(LETTERS[at] for at in each)
            for each in tokens).decode(errors="replace")
    def save_vocabulary(self, *_, **__):
        return ()
"""


def make_folder(folder: Path, **more: Any) -> Path:
    (folder / "tokenization_bytes.py").write_text(CODE)
    special = {"content": "<|im_end|>", "special": True, "lstrip": False, "rstrip": False, "normalized": False}
    files: dict[str, Any] = {
        "config.json": {"vocab_size": 257, "max_position_embeddings": 512, "eos_token_id": 256},
        "tokenizer_config.json": {
            "tokenizer_class": "ByteTokenizer",
            "auto_map": {"AutoTokenizer": ["tokenization_bytes.ByteTokenizer", None]},
            "chat_template": TEMPLATE,
            "eos_token": "<|im_end|>",
            "added_tokens_decoder": {"256": special},
            **more,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.fixture(params=["letters", "raw"])
def codec(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Codec:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = make_folder(tmp_path, raw=request.param == "raw")
    return load_codec(folder, load=partial(load_any, trust_remote_code=True))


def test_ids_text_and_bytes(codec: Codec) -> None:
    text = "Grüße 🎾"
    ids = list(text.encode())
    assert codec.text_ids(text) == ids
    assert codec.text_of(ids, skip_special_tokens=True) == text
    assert codec.chat_ids([{"role": "user", "content": "Hi"}], {})[-10:] == list(b"assistant\n")
    assert codec.text_of([72, 256, 105], skip_special_tokens=True) == "Hi"
    assert [codec.texts.token_text(each)[1] for each in (72, 0xF0, 256, 100_000)] == [b"H", b"\xf0", b"<|im_end|>", b""]
    assert (codec.end_ids, codec.vocabulary, codec.encoder.is_fast) == ({256}, 257, False)


def test_its_text_comes_in_whole_characters(codec: Codec) -> None:
    said = "a🎾é\ufffdb".encode() + b"\xf0\x9f"
    leg = LegText(codec.texts, frozenset(), shows_special=False, emitted_ids=[])
    given, shown = GivenText((), TextWanted(), {}, shows_stop=False), []
    for each in said:
        given.give(Shown(1, leg.push([each]), leg.unfinished))
        shown.append(given.push([each]))
    assert shown[:7] == ["a", "", "", "", "🎾", "", "é"]
    assert "".join(shown) + given.flush() == said.decode(errors="replace")


def test_the_models_code_runs_only_where_that_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"no tokenizer\.json.*trust_remote_code: true"):
        load_any(make_folder(tmp_path), trust_remote_code=False)


async def test_any_folder_that_rust_reads_is_read_so(tmp_path: Path) -> None:
    async with scene(tmp_path):
        assert type(load_any(tmp_path, trust_remote_code=True)).__module__ == "tokenizers"
