"""The fast tokenizer gives the ids of the other one over a corpus, and is left out where it does not."""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pytest
from scripted import make_model_folder
from tokenizers import Tokenizer, models

from disagg.models.catalogue import model_folder
from disagg.tokenizer import encoder as encoder_module
from disagg.tokenizer.encoder import Encoder, sample

FILES, RANDOM_TEXTS = 300, 1000


@pytest.fixture(scope="module", params=["bytes", "smollm2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "bytes":
        return make_model_folder(tmp_path_factory.mktemp("bytes"))
    smollm2 = model_folder("smollm2")
    if not (smollm2 / "tokenizer.json").exists():
        pytest.skip("run `make setup`")
    return smollm2


def encoder_of(folder: Path) -> Encoder:
    return Encoder(Tokenizer.from_file(str(folder / "tokenizer.json")), str(folder))


@pytest.mark.slow
def test_over_files_and_random_texts(folder: Path) -> None:
    encoder, choose = encoder_of(folder), random.Random(6)
    assert encoder.is_fast
    files = islice(Path(sysconfig.get_path("stdlib")).rglob("*.py"), FILES)
    texts = [file.read_text(encoding="utf-8", errors="replace")[:10_000] for file in files]
    texts += ["".join(chr(choose.randrange(1, 0xD7FF)) for _ in range(30)) for _ in range(RANDOM_TEXTS)]
    for text in texts:
        assert encoder.encode(text, special_tokens=True) == encoder.encode_slowly(text, special_tokens=True), text


@dataclass
class Ids:
    ids: list[int]


@pytest.mark.parametrize("wrong", [0, 1, 200])
def test_one_that_differs_anywhere_in_the_sample_is_not_used(
    wrong: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Tokenizer.from_file(str(folder / "tokenizer.json"))
    bad_text = next(islice(sample(slow), wrong, None))

    def fast(text: str, *, add_special_tokens: bool) -> Ids:
        ids = slow.encode(text, add_special_tokens=add_special_tokens).ids
        return Ids([*ids, 7] if text == bad_text else ids)

    def make(_tokenizer: Tokenizer, _where: str) -> Callable[..., Ids]:
        return fast

    monkeypatch.setattr(encoder_module, "_fast_tokenizer", make)
    encoder = encoder_of(folder)
    assert not encoder.is_fast
    assert encoder.encode("Hi", special_tokens=False) == slow.encode("Hi", add_special_tokens=False).ids


def test_what_it_refuses_the_other_one_reads(folder: Path) -> None:
    text = "a\x16b"  # SmolLM2 has no token for this byte
    encoder = encoder_of(folder)
    assert encoder.encode(text, special_tokens=False) == encoder.encode_slowly(text, special_tokens=False)


def test_what_it_cannot_make_the_other_one_reads_alone() -> None:
    encoder = Encoder(Tokenizer(models.WordLevel({"Hi": 7, "?": 8}, unk_token="?")), "model")
    assert not encoder.is_fast
    assert encoder.encode("Hi", special_tokens=False) == [7]
