"""`disagg serve --detach` that is not to go on: its controller is told, or all is ended where that says nothing."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from disagg.cluster.detached import command

BEGUN: Any = SimpleNamespace(run="r", deployment=SimpleNamespace(deadlines=SimpleNamespace(stop_s=1.0)))
NAMES: Any = SimpleNamespace(controller="c")


@pytest.mark.parametrize("answers", [True, False])
async def test_by_its_controller_where_that_answers(monkeypatch: pytest.MonkeyPatch, *, answers: bool) -> None:
    done: list[str] = []

    async def stop() -> None:
        await asyncio.sleep(0 if answers else 60)

    async def end_all(*_: object) -> None:
        done.append("all")

    monkeypatch.setattr(command, "LEAVE_S", 0.05)
    monkeypatch.setattr(command, "kill", done.append)
    monkeypatch.setattr(command, "end_all", end_all)
    controller = SimpleNamespace(stop=SimpleNamespace(remote=stop))
    await command._take_back(controller, NAMES, None, BEGUN)  # type: ignore[arg-type]
    assert done == ([] if answers else ["c", "all"])
