"""The hosts of one engine over several nodes: the first speaks for all, and none lives without the others."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from disagg.plane import messages as m
from disagg.plane.client import PlaneClient
from disagg.plane.engine import EngineFacts
from disagg.plane.server import PlaneServer
from disagg.process import members
from disagg.process.members import Members, Report
from disagg.process.stub import StubEngine

SECRET = b"s" * 32
FACTS = EngineFacts(
    ranks=2,
    context_length=100,
    kv_tokens=100,
    request_tokens_max=100,
    requests_max=4,
    page_size=1,
    pids={},
)
SAMPLE = m.ProcessSample(1, 0, 0.1, 0, 0.2, 16, 9, "S", 0.0, 0.1, 0.0)


class Scene:
    """The first host of an engine over three nodes, and reports from the others."""

    def __init__(self) -> None:
        self.gone: list[str] = []
        self.stages: list[tuple[str, str, int | None]] = []
        self.members = Members(3, lambda *stage: self.stages.append(stage), self.gone.append)
        self.server = PlaneServer(StubEngine(), FACTS, 1, SECRET, others=self.members)
        self.address = ""
        self.reports: list[Report] = []
        self.lost: list[str] = []
        self.dead: list[str] = []

    async def report(self, member: int) -> Report:
        report = await Report.begin(
            member, self.address, 1, SECRET, lambda: [SAMPLE], self.lost.append, self.dead.append
        )
        self.reports.append(report)
        return report

    async def until(self, what: list[str], limit_s: float = 30.0) -> str:
        async with asyncio.timeout(limit_s):
            while not what:
                await asyncio.sleep(0.01)
        return what[0]


def hush(report: Report) -> None:
    """It stops reporting."""
    report._telling.cancel()


def close(report: Report) -> None:
    hush(report)
    report._first.close()


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setattr(members, "REPORT_S", 0.02)
    monkeypatch.setattr(members, "SILENT_S", 0.3)
    made = Scene()
    made.address = f"127.0.0.1:{await made.server.start('127.0.0.1')}"
    yield made
    made.server.close()
    for report in made.reports:
        close(report)


async def test_the_first_host_is_complete_once_all_others_have_reported(scene: Scene) -> None:
    await scene.report(1)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.1):
            await scene.members.joined()
            raise AssertionError("one is missing")
    await scene.report(2)
    async with asyncio.timeout(30):
        await scene.members.joined()
    assert [one.dp_rank for one in scene.members.samples()] == [1, 1]


async def test_stages_of_other_nodes_reach_the_first(scene: Scene) -> None:
    report = await scene.report(1)
    report.stage("leg-1", "transferring", 48)
    async with asyncio.timeout(30):
        while scene.stages != [("leg-1", "transferring", 48)]:
            await asyncio.sleep(0.01)


async def test_a_host_that_goes_is_the_end_of_the_first(scene: Scene) -> None:
    gone = await scene.report(1)
    await scene.report(2)
    await scene.members.joined()
    close(gone)
    assert "node 1 of this engine is gone" in await scene.until(scene.gone)


async def test_a_host_that_says_nothing_is_the_end_of_the_first(scene: Scene) -> None:
    await scene.report(1)
    silent = await scene.report(2)
    await scene.members.joined()
    hush(silent)
    assert "node 2" in await scene.until(scene.gone)
    assert "said nothing" in scene.gone[0]


async def test_the_first_host_going_is_the_end_of_the_others(scene: Scene) -> None:
    await scene.report(1)
    await scene.report(2)
    scene.server.close()
    await scene.until(scene.lost)
    assert "the first node of this engine is gone" in scene.lost[0]


async def test_what_was_seen_grows_old(scene: Scene) -> None:
    now_s = 100.0
    seen = Members(2, lambda _leg, _stage, _cached: None, scene.gone.append, now_s=lambda: now_s)
    seen.saw(m.MemberSamples(1, [SAMPLE]))
    now_s += members.REPORT_S / 2
    assert [one.beat_age_s for one in seen.samples()] == [pytest.approx(0.1 + members.REPORT_S / 2)]
    now_s += 2.5
    assert [one.beat_age_s for one in seen.samples()] == [pytest.approx(0.1 + members.REPORT_S)], (
        "a late report is not a scheduler that stands still"
    )


async def test_a_dead_peer_is_told_to_the_other_hosts_too(scene: Scene) -> None:
    await scene.report(1)
    await scene.report(2)
    await scene.members.joined()
    controller = PlaneClient(scene.address, 1, SECRET, lambda _why: None)
    await controller.connect()
    controller.tell_peer_gone("decode-0#4")
    async with asyncio.timeout(30):
        while scene.dead != ["decode-0#4"] * 2:
            await asyncio.sleep(0.01)
    controller.close()


async def test_a_first_host_that_listens_late_is_waited_for(scene: Scene) -> None:
    scene.server.close()
    await asyncio.sleep(0)
    waiting = asyncio.create_task(scene.report(1))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    late = PlaneServer(StubEngine(), FACTS, 1, SECRET, others=scene.members)
    await late.start("127.0.0.1", int(scene.address.rpartition(":")[2]))
    async with asyncio.timeout(30):
        await waiting
    assert scene.lost == []
    scene.gone.clear()
    for report in scene.reports:
        close(report)
    late.close()


async def test_a_stranger_among_the_frontends_cannot_report(scene: Scene) -> None:
    """An engine on one node has no other hosts: the words are dropped."""
    server = PlaneServer(StubEngine(), FACTS, 1, SECRET)
    address = f"127.0.0.1:{await server.start('127.0.0.1')}"
    report = await Report.begin(1, address, 1, SECRET, lambda: [SAMPLE], scene.lost.append, scene.dead.append)
    report.stage("leg-1", "transferring", 48)
    await asyncio.sleep(0.1)
    assert scene.lost == []
    close(report)
    server.close()
