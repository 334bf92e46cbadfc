"""Drain: no new work, what runs ends or is told to move, then the engine ends; it comes back only if asked."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from scene import SECRET, SETTING, Scene, begin_request, scene

from disagg.cluster import supervisor
from disagg.config.schema import Deadlines
from disagg.registry.control import ControlClient, ControlServer
from disagg.registry.records import EngineRecord, State
from disagg.registry.served import RegistryServer, RemoteRegistry
from disagg.roles import Role

pytestmark = pytest.mark.usefixtures("quick")

ALONE = "aggregated-0"
IMPATIENT = dataclasses.replace(SETTING, deadlines=Deadlines(start_s=5.0, drain_s=0.1))


async def _until_drained(s: Scene) -> EngineRecord:
    await s.until(lambda: s.record(ALONE).state is State.DEAD)
    return s.record(ALONE)


async def test_it_waits_for_what_runs_then_ends_and_stays_so() -> None:
    async with scene(Role.AGGREGATED) as s:
        node, client = s.nodes[ALONE], await s.client(ALONE)
        node.engine._free.clear()  # holds its legs
        receiver = begin_request(client)
        await s.until(lambda: s.live(ALONE).others_requests == 1)
        assert await s.supervisors[ALONE].drain(restart=False) is None
        assert s.record(ALONE).state is State.DRAINING
        await asyncio.sleep(0.2)
        assert node.log_of_calls == ["start aggregated-0#1"]
        node.engine.release()
        record = await _until_drained(s)
        assert receiver.end is not None
        assert receiver.end.reason == "length"
        assert (record.detail, record.evict) == ("drained", False)
        assert not any(r.evict for r in s.seen)
        await asyncio.sleep(0.1)
        assert node.log_of_calls == ["start aggregated-0#1", "end"]
        client.close()


async def test_what_does_not_end_is_evicted_and_then_cut() -> None:
    async with scene(Role.AGGREGATED, setting=IMPATIENT) as s:
        client = await s.client(ALONE)
        s.nodes[ALONE].engine._free.clear()
        receiver = begin_request(client)
        await s.until(lambda: s.live(ALONE).others_requests == 1)
        await s.supervisors[ALONE].drain(restart=False)
        await s.until(lambda: s.record(ALONE).evict)
        assert s.record(ALONE).state is State.DRAINING
        await _until_drained(s)
        await s.until(lambda: receiver.end is not None)
        client.close()


async def test_evicted_requests_that_leave_let_it_end_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "EVICT_S", 60.0)
    async with scene(Role.AGGREGATED, setting=IMPATIENT) as s:
        client = await s.client(ALONE)
        s.nodes[ALONE].engine._free.clear()
        begin_request(client)
        await s.until(lambda: s.live(ALONE).others_requests == 1)
        await s.supervisors[ALONE].drain(restart=False)
        await s.until(lambda: s.record(ALONE).evict)
        client.abort(1)
        await _until_drained(s)
        client.close()


async def test_with_restart_it_comes_back_as_a_new_incarnation() -> None:
    async with scene(Role.AGGREGATED) as s:
        assert await s.supervisors[ALONE].drain(restart=True) is None
        record = await s.until_ready(ALONE, 2)
        assert (record.restarts, record.evict) == (0, False)
        assert (1, "dead") in s.states(ALONE)


async def test_an_engine_drained_before_is_started_by_restart() -> None:
    async with scene(Role.AGGREGATED) as s:
        await s.supervisors[ALONE].drain(restart=False)
        await _until_drained(s)
        refusal = await s.supervisors[ALONE].drain(restart=False)
        assert refusal is not None
        assert "is dead (drained)" in refusal
        assert await s.supervisors[ALONE].drain(restart=True) is None
        await s.until_ready(ALONE, 2)
        assert await s.supervisors[ALONE].drain(restart=False) is None, "it can be drained again"
        assert (await _until_drained(s)).incarnation == 2
        await asyncio.sleep(0.2)
        assert s.record(ALONE).state is State.DEAD, "the earlier --restart is forgotten"


async def test_a_restart_that_was_asked_for_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second word comes while the successor waits for its GPU memory."""
    monkeypatch.setattr("decode.role.MEMORY_BACK_S", 0.3)
    async with scene(Role.PREFILL, Role.DECODE, setting=dataclasses.replace(SETTING, device="cuda")) as s:
        decode = s.supervisors["decode-0"]
        await decode.drain(restart=True)
        await s.until(lambda: s.record("decode-0").state is State.DEAD)
        await asyncio.sleep(0.05)
        assert await decode.drain(restart=True) is None
        await s.until_ready("decode-0", 2)
        await decode.drain(restart=False)
        await s.until(lambda: s.record("decode-0").state is State.DEAD)
        await asyncio.sleep(0.5)
        assert (s.record("decode-0").incarnation, s.record("decode-0").state) == (2, State.DEAD)


async def test_an_engine_that_dies_while_it_drains_stays_down() -> None:
    async with scene(Role.AGGREGATED) as s:
        client = await s.client(ALONE)
        s.nodes[ALONE].engine._free.clear()
        begin_request(client)
        await s.until(lambda: s.live(ALONE).others_requests == 1)
        await s.supervisors[ALONE].drain(restart=False)
        await s.nodes[ALONE].die("killed by SIGKILL")
        record = await _until_drained(s)
        await s.until(lambda: s.record(ALONE).detail.startswith("drained; it ended before it was empty"))
        await asyncio.sleep(0.2)
        assert s.record(ALONE).incarnation == record.incarnation == 1
        client.close()


async def test_a_drain_travels_from_a_frontend_to_the_controller() -> None:
    async with scene(Role.AGGREGATED) as s:

        async def no_log(_engine_id: str, _lines: int) -> str | None:
            return None

        async def drain(engine_id: str, restart: bool) -> str | None:
            return await s.supervisors[engine_id].drain(restart) if engine_id in s.supervisors else "no such engine"

        server, control = RegistryServer(s.registry, SECRET), ControlServer(SECRET, no_log, drain, lambda *_: None)
        remote = RemoteRegistry(f"127.0.0.1:{await server.start('127.0.0.1')}", SECRET)
        address = f"127.0.0.1:{await control.start('127.0.0.1')}"
        asking = ControlClient(lambda: address, SECRET)
        await remote.connect()
        views = remote.watch()
        await anext(views)
        assert await asking.drain("nobody-0", False) == "no such engine"
        assert await asking.drain(ALONE, False) is None
        assert (await anext(views)).records[ALONE].state is State.DRAINING
        refusal = await asking.drain(ALONE, False)
        assert refusal is not None
        assert "only a ready engine" in refusal
        await server.close()
        await control.close()
        await asyncio.sleep(0.05)
