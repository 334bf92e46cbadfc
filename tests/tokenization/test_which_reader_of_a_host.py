"""A host's one reader of short bodies gets none that takes long, however few bytes it has."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from scripted import MODEL, make_model_folder

from disagg.host_spec import TextSpec
from disagg.process.body_readers import LONG_NICENESS
from disagg.process.text_service import LONG_READERS, TextService, text_service
from disagg.tokenizer.text import Texts
from disagg.tokenizer.tokenizer_files import load_tokenizer

PAIRS = {"query": "a query " * 2000, "documents": ["a"] * 2000}  # 24 KB, and half a second: 300,000 tokens
MESSAGES = {"model": MODEL, "messages": [{"role": "user", "content": ""}] * 600}


@dataclass
class Reader:
    read: list[str] = field(default_factory=list)

    async def ask(self, words: str, data: bytes) -> bytes:
        self.read.append(words)
        return b""


@pytest.mark.parametrize(
    ("words", "body", "is_quick"),
    [
        ("chat", {"model": MODEL, "messages": []}, True),
        ("chat sql fr", {"model": MODEL, "messages": []}, True),
        ("text", {"model": MODEL, "prompt": "x" * (40 << 10)}, False),
        ("rank", {"query": "a query", "documents": ["a"]}, True),
        ("rank", PAIRS, False),
        ("chat", MESSAGES, False),
    ],
)
async def test_what_takes_long_goes_to_the_long_ones(
    tmp_path: Path, words: str, body: dict[str, object], is_quick: bool
) -> None:
    short, long = Reader(), Reader()
    service = TextService(Texts(load_tokenizer(make_model_folder(tmp_path))), short, long)
    await service.read(1, words, json.dumps(body).encode())
    assert (short.read, long.read) == (([words], []) if is_quick else ([], [words]))


async def test_long_ones_alone_give_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each short body waits for its reader."""
    made: list[tuple[int, int]] = []

    class Made:
        def __init__(self, _program: str, _order: bytes, most: int, niceness: int = 0) -> None:
            made.append((most, niceness))

        async def start(self) -> None:
            pass

    monkeypatch.setattr("disagg.process.text_service.BodyReaders", Made)
    await text_service(TextSpec(str(make_model_folder(tmp_path)), "", b""))
    assert made == [(1, 0), (LONG_READERS, LONG_NICENESS)]
