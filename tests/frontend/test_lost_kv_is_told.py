"""A frontend tells the controller between which engines KV did not come: once at a time of each pair."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from disagg.coordinator.coordinator import Coordinator
from disagg.coordinator.limits import Limits
from disagg.errors import DeadlineExceeded
from disagg.frontend.service import Service
from disagg.routing.connections import Connections
from disagg.routing.router import Router


class Control:
    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self.hears = asyncio.Event()

    async def transfer_lost(self, prefill: str, decode: str) -> None:
        self.told.append((prefill, decode))
        await self.hears.wait()
        raise DeadlineExceeded("controller", "the controller did not answer within 10 s", "try again")


async def test_each_pair_is_told_once_at_a_time(caplog: pytest.LogCaptureFixture) -> None:
    control: Any = Control()
    router = Router(Connections(b"s" * 32))
    coordinator = Coordinator(router, Limits())
    Service(model_name="m", router=router, coordinator=coordinator, control=control)
    for _ in range(2):
        coordinator.on_transfer_lost("prefill-0#1", "decode-0#1")
        coordinator.on_transfer_lost("prefill-0#1", "decode-1#1")
        await asyncio.sleep(0)
    assert control.told == [("prefill-0#1", "decode-0#1"), ("prefill-0#1", "decode-1#1")]
    control.hears.set()
    await asyncio.sleep(0.01)
    assert "nobody hears that KV did not come from prefill-0#1 to decode-0#1" in caplog.text
    coordinator.on_transfer_lost("prefill-0#1", "decode-0#1")
    await asyncio.sleep(0)
    assert len(control.told) == 3
