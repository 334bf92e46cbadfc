"""What counts as sick, on plain data; and a host that stops answering is found in time, on a virtual clock."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable

import pytest

from disagg.cluster.watch import Signs, Watcher, why_sick
from disagg.errors import LegLost
from disagg.plane.messages import RankHealth
from disagg.simulation.loop import VirtualLoop

WELL = RankHealth(0, "", 0.1, 0.2)


@pytest.mark.parametrize(
    ("signs", "why"),
    [
        (Signs(10.0), ""),
        (Signs(10.0, ranks=[WELL]), ""),
        (Signs(7.1), ""),
        (Signs(7.0), "not answered"),
        (Signs(10.0, ranks=[WELL, RankHealth(1, "no step for 6 s", 6.0, 0.1)]), "rank 1: no step for 6 s"),
        (Signs(10.0, lost="reset"), "reset"),
        (Signs(10.0, routes_missed=2), ""),
        (Signs(10.0, routes_missed=3), "bootstrap"),
    ],
)
def test_why_sick(signs: Signs, why: str) -> None:
    said = why_sick(signs, 10.0)
    assert why in said
    assert bool(why) == bool(said)


class Host:
    def __init__(self) -> None:
        self.answers = True
        self.lost = ""
        self.takes_connections = False
        self.reconnects = 0

    async def health(self, limit_s: float) -> list[RankHealth]:
        if self.lost:
            raise LegLost("host", self.lost)
        if not self.answers:
            async with asyncio.timeout(limit_s):
                await asyncio.Event().wait()
        return [WELL]

    async def reconnect(self, limit_s: float) -> None:
        self.reconnects += 1
        if not self.takes_connections:
            raise LegLost("host", "refused")
        self.lost = ""


def on_virtual_time(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    @functools.wraps(test)
    def run() -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(test())  # type: ignore[arg-type]

    return run


def _now_s() -> float:
    return asyncio.get_running_loop().time()


async def _yes(_address: str) -> bool:
    return True


async def _hangs(_address: str) -> bool:
    await asyncio.Event().wait()
    return True


@on_virtual_time
async def test_a_silent_host_is_found_within_five_seconds() -> None:
    host = Host()
    running = asyncio.create_task(Watcher(host, "", _yes, _now_s).run())
    await asyncio.sleep(0.6)
    assert not running.done()
    host.answers, began_s = False, _now_s()
    assert "not answered" in await asyncio.wait_for(running, 5)
    assert _now_s() - began_s > 2


@on_virtual_time
async def test_a_lost_connection_is_found_within_a_second() -> None:
    host = Host()
    running = asyncio.create_task(Watcher(host, "", _yes, _now_s).run())
    await asyncio.sleep(0.1)
    host.lost = "reset by peer"
    assert "reset by peer" in await asyncio.wait_for(running, 1)


@on_virtual_time
async def test_a_connection_that_comes_back_at_once_is_no_sickness() -> None:
    host = Host()
    host.takes_connections = True
    running = asyncio.create_task(Watcher(host, "", _yes, _now_s).run())
    await asyncio.sleep(0.1)
    host.lost = "the host said nothing for 4 s"  # this machine stood still
    await asyncio.sleep(1.2)
    assert not running.done()
    assert host.reconnects == 1
    host.takes_connections, host.lost = False, "reset by peer"
    assert "reset by peer" in await asyncio.wait_for(running, 1)


@on_virtual_time
async def test_a_bootstrap_server_that_hangs_is_found_within_five_seconds() -> None:
    assert "bootstrap" in await asyncio.wait_for(Watcher(Host(), "127.0.0.1:9", _hangs, _now_s).run(), 5)


@on_virtual_time
async def test_being_held_up_ourselves_is_no_silence_of_the_host() -> None:
    jump_s = 0.0
    host = Host()
    watcher = Watcher(host, "", _yes, lambda: _now_s() + jump_s)
    running = asyncio.create_task(watcher.run())
    await asyncio.sleep(0.2)
    host.answers = False
    jump_s = 60.0  # this process was stopped for a minute
    await asyncio.sleep(0.8)
    assert not running.done()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
