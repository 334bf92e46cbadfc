"""An adapter of another model is refused where it is read, and one of this model is not."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from disagg.models import adapter_fit
from disagg.models.adapters import read_adapter
from disagg.models.safetensors_header import read_header

LAYER = "model.layers.0"
MODEL = {
    f"{LAYER}.self_attn.q_proj.weight": [8, 4],
    f"{LAYER}.mlp.down_proj.weight": [4, 16],
    f"{LAYER}.mlp.experts.gate_up_proj": [2, 4, 6],
    f"{LAYER}.self_attn.o_proj.qweight": [1, 8],
    "model.embed_tokens.weight": [10, 4],
}


def write(path: Path, shapes: dict[str, list[int]], dtype: str = "F32") -> None:
    head, at = {}, 0
    for name, shape in shapes.items():
        size = 4
        for side in shape:
            size *= side
        head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    said = json.dumps({"__metadata__": {"format": "pt"}, **head}).encode()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(said)) + said + bytes(at))


def read(folder: Path, parts: dict[str, list[int]], dtype: str = "F32", model: dict[str, list[int]] = MODEL) -> str:
    write(folder / "model" / "model.safetensors", model, dtype)
    write(folder / "adapter" / "adapter_model.safetensors", parts)
    said = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(said))
    return read_adapter(str(folder / "adapter"), str(folder / "model")).absent


def parts(module: str, into: int, out: int) -> dict[str, list[int]]:
    begin = f"base_model.model.{module}"
    return {f"{begin}.lora_A.weight": [2, into], f"{begin}.lora_B.weight": [out, 2]}


@pytest.mark.parametrize(
    ("of", "why"),
    [
        (parts(f"{LAYER}.self_attn.q_proj", 4, 8), ""),
        ({f"{LAYER}.self_attn.q_proj.lora_A.default.weight": [2, 4]}, ""),
        (parts(f"{LAYER}.self_attn.q_proj", 5, 8), "q_proj has a side of 5, and this one's has 4"),
        (parts(f"{LAYER}.self_attn.q_proj", 4, 9), "q_proj has a side of 9, and this one's has 8"),
        (parts("model.layers.1.self_attn.q_proj", 4, 8), "changes model.layers.1.self_attn.q_proj, which this one has"),
        (parts(f"{LAYER}.mlp.gate.down_proj", 4, 8), "changes model.layers.0.mlp.gate.down_proj"),
        (parts(f"{LAYER}.mlp.experts.1.down_proj", 4, 8), ""),
        (parts("model.layers.1.mlp.experts.1.down_proj", 4, 8), "model.layers.1.mlp.experts.1.down_proj"),
        (parts(f"{LAYER}.self_attn.o_proj", 9, 9), ""),
        ({"base_model.model.model.embed_tokens.lora_embedding_A": [2, 3]}, ""),
        (parts("model.lm_head", 4, 10), ""),
    ],
    ids=str,
)
def test_what_has_no_place_in_the_model(tmp_path: Path, of: dict[str, list[int]], why: str) -> None:
    absent = read(tmp_path, of)
    assert why in absent
    assert bool(absent) is bool(why)
    assert not why or "is of another model" in absent


OLDER, NEWER = "language_model.model.layers.0", "model.language_model.layers.0"
TOWER = "vision_tower.vision_model.encoder.layers.0"


@pytest.mark.parametrize(("of_adapter", "of_model"), [(OLDER, NEWER), (NEWER, OLDER)])
@pytest.mark.parametrize(
    ("module", "into", "out", "why"),
    [
        ("self_attn.q_proj", 4, 8, ""),
        ("self_attn.q_proj", 5, 8, "q_proj has a side of 5"),
        ("mlp.experts.1.down_proj", 4, 8, ""),
        ("self_attn.qkv_proj", 4, 8, "self_attn.qkv_proj, which this one has not"),
    ],
)
def test_a_vision_models_adapter_fits_whichever_release_of_transformers_named_its_parts(
    tmp_path: Path, of_adapter: str, of_model: str, module: str, into: int, out: int, why: str
) -> None:
    model = {
        f"{TOWER}.self_attn.q_proj.weight": [3, 3],
        f"{of_model}.self_attn.q_proj.weight": [8, 4],
        f"{of_model}.mlp.experts.gate_up_proj": [2, 4, 6],
    }
    absent = read(tmp_path, parts(f"{of_adapter}.{module}", into, out), model=model)
    assert why in absent
    assert bool(absent) is bool(why)


def test_of_quantised_weights_and_of_those_in_other_files_the_shapes_are_not_known(tmp_path: Path) -> None:
    assert not read(tmp_path, parts(f"{LAYER}.self_attn.q_proj", 5, 9), dtype="I8")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "model.bin")
    assert not read_adapter(str(tmp_path / "adapter"), str(tmp_path / "model")).absent


def test_what_cannot_be_read_is_left_to_who_loads_it(tmp_path: Path) -> None:
    read(tmp_path, parts("nowhere", 1, 1))
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"\xff" * 20)
    assert not read_adapter(str(tmp_path / "adapter"), str(tmp_path / "model")).absent


def test_a_model_is_read_once_for_all_its_adapters_and_anew_when_it_has_changed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read(tmp_path, parts(f"{LAYER}.self_attn.q_proj", 5, 8))
    seen: list[str] = []

    def reads(path: Path) -> dict[str, dict[str, Any]]:
        seen.append(path.parent.name)
        return read_header(path)

    monkeypatch.setattr(adapter_fit, "read_header", reads)
    for _ in range(3):
        assert "of 5, and this one's has 4" in read_adapter(str(tmp_path / "adapter"), str(tmp_path / "model")).absent
    assert "model" not in seen
    write(tmp_path / "model" / "model.safetensors", {f"{LAYER}.self_attn.q_proj.weight": [8, 5]})
    assert not read_adapter(str(tmp_path / "adapter"), str(tmp_path / "model")).absent
