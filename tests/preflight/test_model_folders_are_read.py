"""A node's copy of a model: whole or not, the same as another's or not, found out without reading the weights."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models

from disagg.preflight.file_rules import problems_here
from disagg.preflight.model_files import INDEX, read_model_files
from disagg.preflight.node_facts import ModelFiles

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "m")


def write_model(folder: Path, model_type: str = "llama") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}))
    for name in SHARDS:
        header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
        (folder / name).write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    return folder


@pytest.mark.parametrize(
    ("decoder", "steps"),
    [
        (decoders.ByteLevel(), ("ByteLevel",)),
        (None, ()),
        (
            decoders.Sequence(
                [decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("_", " "), decoders.ByteLevel()]
            ),
            ("ByteFallback", "Fuse", "Replace", "ByteLevel"),
        ),
    ],
)
def test_the_decoder_is_told_step_by_step(folder: Path, decoder: Any, steps: tuple[str, ...]) -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0}, []))
    if decoder is not None:
        tokenizer.decoder = decoder
    tokenizer.save(str(folder / "tokenizer.json"))
    assert read_model_files(folder).decoder == steps


def test_a_whole_model_is_whole_and_equal_to_its_copy(folder: Path, tmp_path: Path) -> None:
    files = read_model_files(folder)
    assert (files.absent, files.missing, files.truncated, files.content) == ("", (), (), "")
    copy = read_model_files(write_model(tmp_path / "copy"))
    assert copy._replace(folder=files.folder) == files
    deep = read_model_files(folder, deep=True)
    assert deep.content
    assert deep._replace(content="") == files


def test_a_shard_that_its_index_names_is_missed(folder: Path) -> None:
    (folder / SHARDS[1]).unlink()
    assert read_model_files(folder).missing == (SHARDS[1],)


@pytest.mark.parametrize("left", [4, 20, -1])
def test_a_shard_that_was_cut_is_found_by_its_own_header(folder: Path, left: int) -> None:
    whole = (folder / SHARDS[0]).read_bytes()
    (folder / SHARDS[0]).write_bytes(whole[:left])
    assert read_model_files(folder).truncated == (SHARDS[0],)


@pytest.mark.parametrize(
    ("name", "content"),
    [("tokenizer.json", b"{"), ("tokenizer_config.json", b"\xff"), ("chat_template.jinja", b"\xff")],
)
def test_a_text_that_is_damaged_is_named(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    assert read_model_files(folder).damaged == (name,)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", SHARDS[0], INDEX, "chat_template.jinja"])
def test_a_pointer_of_git_lfs_is_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5000000000\n")
    assert read_model_files(folder).pointers == (name,)


@pytest.mark.parametrize("name", ["tokenizer.json", SHARDS[1], "config.json"])
def test_this_machines_copy_is_checked_without_a_cluster(folder: Path, name: str) -> None:
    assert problems_here(str(folder), None) == []
    (folder / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5000000000\n")
    (problem,) = problems_here(str(folder), None)
    assert (problem.path, name in problem.what, "git-lfs" in problem.what) == ("model.path", True, True)


def test_a_config_that_is_no_json_is_told_without_a_cluster(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    assert "damaged" in problems_here(str(folder), None)[0].what
    assert problems_here("owner/a-model-that-is-not-here", None) == []


def test_changed_bytes_are_found_only_by_a_deep_look(folder: Path) -> None:
    before, before_deep = read_model_files(folder), read_model_files(folder, deep=True)
    whole = (folder / SHARDS[0]).read_bytes()
    (folder / SHARDS[0]).write_bytes(whole[:-1] + b"x")
    assert read_model_files(folder) == before
    assert read_model_files(folder, deep=True).content != before_deep.content


def test_another_tokenizer_has_another_digest(folder: Path) -> None:
    before = read_model_files(folder)
    (folder / "tokenizer.json").write_text("[]")
    after = read_model_files(folder)
    assert (after.tokenizer != before.tokenizer, after.sizes == before.sizes, after.config == before.config) == (
        True,
    ) * 3


def test_what_is_not_there_or_no_model_is_told(folder: Path, tmp_path: Path) -> None:
    assert read_model_files(tmp_path / "nothing").absent == "config.json is not there"
    (tmp_path / "empty").mkdir()
    assert read_model_files(tmp_path / "empty").absent == "config.json is not there"
    (folder / "config.json").write_text("[]")
    assert "is damaged" in read_model_files(folder).absent
    (folder / "config.json").write_text("{")
    assert "is damaged" in read_model_files(folder).absent


def test_code_of_its_own_is_needed_where_transformers_has_none(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    for model_type, needed in (("llama", False), ("kimi_k9", True)):
        folder = write_model(tmp_path / model_type, model_type)
        config = {"model_type": model_type, "auto_map": {"AutoConfig": "configuration_x.X"}}
        (folder / "config.json").write_text(json.dumps(config))
        files: ModelFiles = read_model_files(folder)
        assert (files.model_type, files.needs_remote_code) == (model_type, needed)
