"""When a host tells frontends what it has granted."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from disagg.plane.engine import EngineFacts
from disagg.plane.server import REPORT_S, PlaneServer
from disagg.simulation.loop import VirtualLoop


class Session:
    def __init__(self) -> None:
        self.told_at_s: list[float] = []

    def send(self, message: object) -> None:
        self.told_at_s.append(asyncio.get_running_loop().time())


def test_a_change_is_told_at_once_and_those_that_follow_together() -> None:
    async def scenario() -> list[float]:
        server = PlaneServer(cast("Any", None), EngineFacts(requests_max=8, kv_tokens=1000), 1, b"")
        session = Session()
        server.sessions[cast("Any", session)] = None
        await asyncio.sleep(1.0)
        for wait_s in (0.0, 0.0, REPORT_S / 4, REPORT_S / 4, 10 * REPORT_S):
            server.report_soon()
            await asyncio.sleep(wait_s)
        server.report_soon()
        await asyncio.sleep(0.0)
        await asyncio.sleep(0.0)
        return session.told_at_s

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        told_at_s = runner.run(scenario())
    assert told_at_s[0] == 1.0
    assert told_at_s[1] == 1.0 + REPORT_S
    assert len(told_at_s) == 3
    assert told_at_s[2] > 1.0 + 10 * REPORT_S
