"""Adapters of an SGLang engine: what SGLang answers becomes silence, or the error it told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from disagg.adapters import Adapter
from disagg.sglang.engine import SGLangEngine


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "adapter_config.json").write_text('{"r": 8, "target_modules": ["o_proj"]}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    return str(tmp_path)


class FakeEngine:
    def __init__(self, success: bool, error_message: str | None) -> None:
        self.answer = SimpleNamespace(success=success, error_message=error_message)
        self.asked: list[dict[str, Any]] = []

    async def async_load_lora_adapter(self, **asked: Any) -> Any:
        self.asked.append(asked)
        return self.answer

    async_unload_lora_adapter = async_load_lora_adapter


def engine(success: bool, error_message: str | None = None) -> tuple[SGLangEngine, FakeEngine]:
    made, fake = SGLangEngine.__new__(SGLangEngine), FakeEngine(success, error_message)
    made._engine, made._arguments = fake, {}
    return made, fake


async def test_sglang_is_asked_by_name_and_folder(folder: str) -> None:
    made, fake = engine(True)
    await made.load_adapter(Adapter("sql", folder, True))
    await made.unload_adapter("sql")
    assert fake.asked == [{"lora_name": "sql", "lora_path": folder, "pinned": True}, {"lora_name": "sql"}]


@pytest.mark.parametrize("said", ["rank 64 is incompatible", None])
async def test_what_sglang_refuses_is_told(said: str | None, folder: str) -> None:
    made, _ = engine(False, said)
    for change in (made.load_adapter(Adapter("sql", folder)), made.unload_adapter("sql")):
        with pytest.raises(ValueError, match=said or "did not say why"):
            await change


async def test_one_that_sglang_dropped_by_itself_is_gone(folder: str) -> None:
    made, _ = engine(False, "LoRA with name sql does not exist. Loaded LoRAs: odict_keys([])")
    await made.unload_adapter("sql")
    with pytest.raises(ValueError, match="does not exist"):
        await made.load_adapter(Adapter("sql", folder))


async def test_one_that_sglang_would_die_of_never_reaches_it(folder: str) -> None:
    Path(folder, "adapter_config.json").write_text('{"r": 8, "target_modules": ["k_proj"]}')
    made, fake = engine(True)
    with pytest.raises(ValueError, match="dies at its first use"):
        await made.load_adapter(Adapter("sql", folder))
    assert fake.asked == []
