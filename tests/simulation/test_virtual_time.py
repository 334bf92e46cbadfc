"""The virtual clock, and a network in memory that really speaks the plane's protocol."""

from __future__ import annotations

import asyncio
import time
from random import Random

import pytest

from disagg.errors import LegLost
from disagg.plane.client import SILENT_S, PlaneClient
from disagg.plane.server import PlaneServer
from disagg.roles import Role
from disagg.simulated_engine.engine import SimulatedEngine
from disagg.simulated_engine.model import Model
from disagg.simulation.loop import Stuck, VirtualLoop
from disagg.simulation.network import SimNetwork

SECRET = b"s" * 32


def run(scenario):
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(scenario)


def test_a_day_passes_in_a_moment() -> None:
    async def scenario() -> float:
        await asyncio.sleep(86_400)
        return asyncio.get_running_loop().time()

    began_s = time.monotonic()
    assert run(scenario()) == pytest.approx(86_400)
    assert time.monotonic() - began_s < 1


def test_a_wait_that_nothing_can_end_is_said_to_be_stuck() -> None:
    async def scenario() -> None:
        await asyncio.get_running_loop().create_future()

    loop = VirtualLoop()
    task = loop.create_task(scenario())
    with pytest.raises(Stuck):
        loop.run_until_complete(task)
    task.cancel()
    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    loop.close()


def test_nothing_runs_on_a_thread() -> None:
    async def scenario() -> None:
        with pytest.raises(RuntimeError):
            await asyncio.to_thread(time.sleep, 0)

    run(scenario())


class Plane:
    """One engine host on the network, and one client of it."""

    def __init__(self) -> None:
        self.network = SimNetwork(3)
        self.engine = SimulatedEngine(Model(role=Role.AGGREGATED), network=self.network.at("host"), random=Random(3))
        loop = asyncio.get_running_loop()
        self.server = PlaneServer(
            self.engine, self.engine.start(), 1, SECRET, network=self.network.at("host"), now_s=loop.time
        )
        self.lost: list[str] = []

    async def client(self, secret: bytes = SECRET) -> PlaneClient:
        port = await self.server.start("host")
        loop = asyncio.get_running_loop()
        client = PlaneClient(
            f"host:{port}", 1, secret, self.lost.append, network=self.network.at("front"), now_s=loop.time
        )
        await client.connect()
        return client


def test_plane_connections_are_proven_and_answer_over_it() -> None:
    async def scenario() -> None:
        plane = Plane()
        client = await plane.client()
        assert [rank.kv_tokens_used for rank in await client.loads()] == [0]
        assert [rank.sick for rank in await client.health()] == [""]
        with pytest.raises(LegLost):
            await PlaneClient(client.address, 1, b"x" * 32, print, network=plane.network.at("front")).connect()
        client.close()
        await asyncio.sleep(1)
        assert not plane.network.links

    run(scenario())


@pytest.mark.parametrize("direction", [0, 1])
def test_a_half_open_connection_counts_as_lost_after_the_silence(direction: int) -> None:
    async def scenario() -> None:
        plane = Plane()
        await plane.client()
        await asyncio.sleep(10)
        assert not plane.lost
        [link] = plane.network.links.values()
        link.mute(direction)
        began_s = asyncio.get_running_loop().time()
        while not plane.lost:
            await asyncio.sleep(0.1)
        assert SILENT_S - 1 < asyncio.get_running_loop().time() - began_s < SILENT_S + 2.2

    run(scenario())


def test_a_cut_connection_is_known_at_both_ends_at_once() -> None:
    async def scenario() -> None:
        plane = Plane()
        client = await plane.client()
        plane.network.take_away("host")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert plane.lost
        assert not plane.server.sessions
        with pytest.raises(LegLost, match="nobody listens"):
            await client.connect()

    run(scenario())


def test_a_host_that_does_not_answer_costs_a_connect_its_deadline() -> None:
    async def scenario() -> None:
        plane = Plane()
        plane.network.silence("host")
        with pytest.raises(LegLost, match="no connection"):
            await plane.client()

    run(scenario())
