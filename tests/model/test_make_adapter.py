"""`disagg model make-adapter` writes what engines can load, beside nothing that is there."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from typer.testing import CliRunner

from disagg.cli.model import app
from disagg.models.adapters import read_adapter

LAYER = "model.layers.0.self_attn"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    shapes = {f"{LAYER}.q_proj.weight": [8, 4], f"{LAYER}.v_proj.weight": [2, 4], "model.norm.weight": [4]}
    head, at = {}, 0
    for name, shape in shapes.items():
        size = 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        head[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    said = json.dumps(head).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(said)) + said + bytes(at))
    return folder


def make(*words: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["make-adapter", *map(str, words)])
    return done.exit_code, done.output


def head_of(folder: Path) -> dict[str, list[int]]:
    data = (folder / "adapter_model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return {name: each["shape"] for name, each in json.loads(data[8 : 8 + length]).items() if name != "__metadata__"}


def test_it_has_parts_for_each_module_and_differs_by_its_seed(model: Path, tmp_path: Path) -> None:
    for name, *more in (("a",), ("b",), ("c", "--seed", "1")):
        assert make(model, tmp_path / name, "--rank", "3", *more)[0] == 0
    files = read_adapter(str(tmp_path / "a"))
    assert (files.absent, files.rank, files.modules) == ("", 3, ("q_proj", "v_proj"))
    begin = f"base_model.model.{LAYER}"
    assert head_of(tmp_path / "a") == {
        f"{begin}.q_proj.lora_A.weight": [3, 4],
        f"{begin}.q_proj.lora_B.weight": [8, 3],
        f"{begin}.v_proj.lora_A.weight": [3, 4],
        f"{begin}.v_proj.lora_B.weight": [2, 3],
    }
    a, b, c = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("model", "model"), "is there already"),
        (("model", "new", "--modules", "k_proj,o_proj"), "no weights of k_proj, o_proj"),
        (("nowhere/at/all", "new"), "is no folder here"),
    ],
)
def test_what_cannot_be_made_is_told_and_leaves_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, told = make(*words)
    assert status == 1
    assert said in " ".join(told.split())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
