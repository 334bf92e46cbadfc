"""Token ids are those of SGLang's own tokenizer over a table of configurations; templates take the form it detects."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_templates_show_every_word import SOURCES
from tokenizer_table import NAMES, TEXTS, made, write_table
from tokenizers import normalizers

from disagg.cpu_profile.paths import standin_environment
from disagg.errors import StartError
from disagg.models.catalogue import model_folder
from disagg.process import tokenizer_check
from disagg.process.tokenizer_check import check_tokenizer
from disagg.tokenizer.content_format import loops_over_parts
from disagg.tokenizer.encoder import Encoder
from disagg.tokenizer.template import environment
from disagg.tokenizer.tokenizer_files import load_tokenizer

HERE = Path(__file__).parent
LIMIT_S = 1500  # an import of SGLang and some 250 tokenizers: 20 s, but not on a machine that does much else
pytestmark = [pytest.mark.slow, pytest.mark.timeout(LIMIT_S + 60)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    table = dict(write_table(tmp_path_factory.mktemp("table")))
    smollm2 = model_folder("smollm2")
    return table | ({"smollm2": smollm2} if (smollm2 / "tokenizer.json").exists() else {})


@pytest.fixture(scope="module")
def odd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a class that makes its tokenizer anew, in a way that is not written down here."""
    folder = tmp_path_factory.mktemp("odd")
    tokenizer = made("bytes")
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(NAMES | {"tokenizer_class": "CodeGenTokenizer"}))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


@pytest.fixture(scope="module")
def said(folders: dict[str, Path], odd_folder: Path) -> dict[str, Any]:
    asked = {"folders": [*map(str, folders.values()), str(odd_folder)], "texts": TEXTS, "sources": SOURCES}
    done = subprocess.run(
        [sys.executable, str(HERE / "ask_sglang.py")],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env=standin_environment(os.environ),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_ids_and_texts_are_those_of_sglang(folders: dict[str, Path], said: dict[str, Any]) -> None:
    wrong = []
    for (name, folder), answer in zip(folders.items(), said["answers"], strict=False):
        tokenizer = load_tokenizer(folder)
        for special_tokens, wanted in zip((True, False), answer["ids"], strict=True):
            ids = [tokenizer.encode(text, add_special_tokens=special_tokens).ids for text in TEXTS]
            wrong += [
                (name, special_tokens, *each) for each in zip(TEXTS, ids, wanted, strict=True) if each[1] != each[2]
            ]
        decoded = [tokenizer.decode(ids, skip_special_tokens=True) for ids in answer["ids"][0]]
        wrong += [(name, *each) for each in zip(decoded, answer["decoded"], strict=True) if each[0] != each[1]]
    assert not wrong
    assert len(folders) > 200


def test_the_fast_encoder_gives_them_too(folders: dict[str, Path], said: dict[str, Any]) -> None:
    """Also where a flag has put a token before each text, and where special tokens are read as plain text."""
    names = ["LlamaTokenizerFast, bytes, post none", "LlamaTokenizerFast, bytes, {'add_bos_token': False}"]
    names += ["PreTrainedTokenizerFast, bytes, {'split_special_tokens': True}"]
    answers = dict(zip(folders, said["answers"], strict=False))
    for name in names:
        encoder = Encoder(load_tokenizer(folders[name]), name)
        for special_tokens, wanted in zip((True, False), answers[name]["ids"], strict=True):
            assert [encoder.encode(text, special_tokens=special_tokens) for text in TEXTS] == wanted


def test_deepseeks_flag_puts_the_first_token_before_a_text(folders: dict[str, Path]) -> None:
    for flags, first in (("{'add_bos_token': True}", [1]), ("{'add_bos_token': None}", [1])):
        tokenizer = load_tokenizer(folders[f"LlamaTokenizerFast, bytes, {flags}"])
        assert tokenizer.encode("Who").ids[:1] == first
        assert tokenizer.encode("Who", add_special_tokens=False).ids[:1] != first


def test_an_engine_compares_them_again_and_finds_what_differs(said: dict[str, Any]) -> None:
    *good, odd = said["answers"]
    assert [answer["difference"] for answer in good if answer["difference"]] == []
    assert "here and" in odd["difference"]


def test_a_start_is_refused_where_they_differ(
    odd_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DISAGG_CACHE", str(tmp_path))

    class Other:
        def __call__(self, _text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": [7]}

    loaded: list[str] = []

    def theirs(folder: str, trust_remote_code: bool) -> Any:
        loaded.append(folder)
        if len(loaded) > 1:
            raise OSError("no such class")
        return Other()

    monkeypatch.setattr(tokenizer_check, "_theirs", theirs)
    with pytest.raises(StartError, match=r"'Who are you\?' is .* here and \[7\] there") as refused:
        check_tokenizer({"model_path": str(odd_folder)})
    assert refused.value.where == str(odd_folder)
    check_tokenizer({"model_path": str(odd_folder)})  # SGLang cannot load it: nothing to compare with
    check_tokenizer({"model_path": "owner/name"})
    assert loaded == [str(odd_folder)] * 2


def test_what_was_found_equal_is_not_compared_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DISAGG_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model").mkdir()
    made("bytes").save(str(tmp_path / "model" / "tokenizer.json"))
    loaded: list[str] = []

    class Same:
        def __init__(self) -> None:
            self.tokenizer = load_tokenizer(tmp_path / "model")

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}

        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            return str(self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    def theirs(folder: str, trust_remote_code: bool) -> Any:
        loaded.append(folder)
        return Same()

    monkeypatch.setattr(tokenizer_check, "_theirs", theirs)
    for _ in range(2):
        check_tokenizer({"model_path": str(tmp_path / "model")})
    assert len(loaded) == 1
    (tmp_path / "model" / "tokenizer_config.json").write_text('{"add_bos_token": true}')  # other files, another look
    check_tokenizer({"model_path": str(tmp_path / "model")})
    assert len(loaded) == 2


def test_a_template_takes_the_form_that_sglang_detects(said: dict[str, Any]) -> None:
    ours = ["openai" if loops_over_parts(environment(), source) else "string" for source in SOURCES]
    assert ours == said["forms"]
