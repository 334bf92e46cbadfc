"""The driver starts its frontend again whenever it ends, also when the machine cannot start one at the moment."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from disagg.cluster import frontend_process
from disagg.cluster.frontend_process import FrontendProcess
from disagg.errors import StartError
from disagg.registry.memory import MemoryRegistry
from disagg.registry.records import FrontendRecord


@pytest.mark.parametrize("error", [StartError("frontend", "it ended"), OSError("no more processes")])
async def test_a_start_that_fails_is_tried_again(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended:
        returncode = 1

        async def wait(self) -> int:
            return 1

    class Frontend(FrontendProcess):
        starts = 0

        async def start(self) -> None:
            self.starts += 1
            raise error

    monkeypatch.setattr(frontend_process, "RESTART_PAUSE_S", 0.01)
    spec: Any = SimpleNamespace(number=0)
    registry = MemoryRegistry()
    await registry.put_frontend(FrontendRecord(number=0, url="http://h:1/v1", pid=1))
    frontend = Frontend(spec, {}, registry)
    frontend._process = Ended()  # type: ignore[assignment]
    keeping = asyncio.create_task(frontend.keep_alive())
    async with asyncio.timeout(5):
        while frontend.starts < 3:
            await asyncio.sleep(0.01)
    assert not registry.frontends, "it is not listed while it does not listen"
    keeping.cancel()
