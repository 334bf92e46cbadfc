"""A coordinator and two stub engines over real sockets: both legs, one end, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from disagg.coordinator.coordinator import Coordinator, Limits
from disagg.coordinator.phases import Phase
from disagg.coordinator.request import Request
from disagg.engine.stub import StubEngine
from disagg.errors import Cancelled, DeadlineExceeded, LegLost, NoReadyPair
from disagg.plane.server import PlaneServer
from disagg.registry.records import EngineRecord, Role, State
from disagg.routing.table import EngineTable

SECRET = b"s" * 32
QUICK = Limits(no_pair_s=0.2, first_token_s=0.3, next_token_s=0.3, request_s=5)


class Plain:
    """A text side that writes one letter a token and stops at `stop_after` tokens."""

    def __init__(self, stop_after: int = 1 << 30) -> None:
        self._left = stop_after
        self.stopped = False

    def push(self, token_ids: list[int]) -> str:
        shown = min(len(token_ids), self._left)
        self._left -= shown
        self.stopped = self._left == 0
        return "x" * shown

    def flush(self) -> str:
        return ""


def request(max_tokens: int = 8, text: Plain | None = None) -> Request:
    return Request(uuid.uuid4().hex, [1, 2, 3], {}, max_tokens, text or Plain(), time.monotonic())


@dataclass
class Bench:
    coordinator: Coordinator
    table: EngineTable
    prefill: StubEngine
    decode: StubEngine
    servers: dict[str, PlaneServer]
    records: dict[str, EngineRecord]

    async def answer(self, of: Request) -> tuple[str, str | None]:
        text, finish = "", None
        async with contextlib.aclosing(self.coordinator.generate(of)) as pieces:
            async for piece in pieces:
                text, finish = text + piece.text, piece.finish_reason
        return text, finish

    async def settle(self) -> None:
        """Everything is given back."""
        async with asyncio.timeout(2):
            while len(self.coordinator.rooms) or self.table.places_taken or self.coordinator.live:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def bench(
    prefill: StubEngine | None = None, decode: StubEngine | None = None, limits: Limits = QUICK, met: bool = True
) -> AsyncIterator[Bench]:
    engines = {"prefill-0": prefill or StubEngine(), "decode-0": decode or StubEngine()}
    servers, records = {}, {}
    for name, engine in engines.items():
        servers[name] = PlaneServer(engine, engine.start(), 1, SECRET)
        port = await servers[name].start("127.0.0.1")
        is_prefill = name == "prefill-0"
        records[name] = EngineRecord(
            id=name,
            role=Role.PREFILL if is_prefill else Role.DECODE,
            state=State.READY,
            incarnation=1,
            plane=f"127.0.0.1:{port}",
            bootstrap="127.0.0.1:9" if is_prefill else "",
            peers=frozenset() if is_prefill or not met else frozenset({"prefill-0#1"}),
        )
    table = EngineTable(SECRET)
    await table.update(records)
    try:
        yield Bench(Coordinator(table, limits), table, engines["prefill-0"], engines["decode-0"], servers, records)
    finally:
        await table.update({})
        for server in servers.values():
            await server.close()


async def test_both_legs_meet_in_one_room_and_decode_answers() -> None:
    async with bench() as b:
        r = request(max_tokens=5)
        assert await b.answer(r) == ("xxxxx", "length")
        await b.settle()
    p, d = b.prefill.legs[0], b.decode.legs[0]
    assert p.bootstrap is not None
    assert p.bootstrap == d.bootstrap
    assert 0 < p.bootstrap.room < 1 << 63
    assert p.sampling["max_new_tokens"] == 1
    assert d.sampling["max_new_tokens"] == 5
    assert (r.phase, r.usage["completion_tokens"]) == (Phase.FINISHED, 5)


async def test_a_stop_string_aborts_what_decode_still_does() -> None:
    async with bench(decode=StubEngine(step_s=0.01)) as b:
        assert await b.answer(request(max_tokens=10_000, text=Plain(stop_after=3))) == ("xxx", "stop")
        await b.settle()
        assert b.decode.loads()[0].running == 0


@pytest.mark.parametrize("victim", ["prefill", "decode"])
async def test_the_first_leg_to_fail_ends_both(victim: str) -> None:
    async with bench(prefill=StubEngine(hold=True), decode=StubEngine(hold=True), limits=Limits()) as b:
        r = request()
        answering = asyncio.create_task(b.answer(r))
        while not (b.prefill.legs and b.decode.legs):
            await asyncio.sleep(0.01)
        (b.prefill if victim == "prefill" else b.decode).fail(r.id, "out of memory")
        with pytest.raises(LegLost, match="out of memory"):
            await asyncio.wait_for(answering, 1)
        await b.settle()
        assert b.prefill.loads()[0].running == b.decode.loads()[0].running == 0
        assert r.phase is Phase.FAILED


@pytest.mark.parametrize("victim", ["prefill-0", "decode-0"])
async def test_a_lost_host_ends_the_request_at_once(victim: str) -> None:
    async with bench(prefill=StubEngine(hold=True), decode=StubEngine(hold=True), limits=Limits()) as b:
        answering = asyncio.create_task(b.answer(request()))
        while not (b.prefill.legs and b.decode.legs):
            await asyncio.sleep(0.01)
        await b.servers[victim].close()
        with pytest.raises(LegLost):
            await asyncio.wait_for(answering, 1)
        await b.settle()


async def test_a_client_that_leaves_aborts_both_legs() -> None:
    async with bench(prefill=StubEngine(hold=True), decode=StubEngine(hold=True), limits=Limits()) as b:
        r = request()
        answering = asyncio.create_task(b.answer(r))
        while not (b.prefill.legs and b.decode.legs):
            await asyncio.sleep(0.01)
        answering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answering
        await b.settle()
        assert b.prefill.loads()[0].running == b.decode.loads()[0].running == 0
        assert r.phase is Phase.CANCELLED


async def test_cancel_by_id() -> None:
    async with bench(decode=StubEngine(hold=True), limits=Limits()) as b:
        r = request()
        answering = asyncio.create_task(b.answer(r))
        while not b.decode.legs:
            await asyncio.sleep(0.01)
        assert b.coordinator.cancel(r.id)
        with pytest.raises(Cancelled):
            await asyncio.wait_for(answering, 1)
        await b.settle()
        assert not b.coordinator.cancel(r.id)


async def test_no_first_token_ends_at_its_deadline() -> None:
    async with bench(decode=StubEngine(hold=True)) as b:
        with pytest.raises(DeadlineExceeded, match="first token"):
            await b.answer(request())
        await b.settle()


async def test_engines_that_have_not_met_are_no_pair() -> None:
    async with bench(met=False) as b:
        assert not b.table.is_ready()
        with pytest.raises(NoReadyPair):
            await b.answer(request())


async def test_a_request_waits_for_a_pair_that_comes_in_time() -> None:
    async with bench(met=False, limits=Limits(no_pair_s=5)) as b:
        answering = asyncio.create_task(b.answer(request(max_tokens=2)))
        await asyncio.sleep(0.05)
        import msgspec

        decode = msgspec.structs.replace(b.records["decode-0"], peers=frozenset({"prefill-0#1"}))
        await b.table.update(b.records | {"decode-0": decode})
        assert await asyncio.wait_for(answering, 1) == ("xx", "length")


async def test_frames_of_another_incarnation_are_dropped() -> None:
    async with bench(limits=QUICK) as b:
        b.servers["decode-0"].incarnation = 0
        with pytest.raises(DeadlineExceeded):
            await b.answer(request())


async def test_a_gap_in_the_tokens_is_a_failure_not_an_answer() -> None:
    async with bench(decode=StubEngine(step_s=0.02)) as b:
        r = request(max_tokens=50)
        answering = asyncio.create_task(b.answer(r))
        while not r.emitted_ids:
            await asyncio.sleep(0.005)
        for session in b.servers["decode-0"].sessions:
            for leg in session._legs.values():
                leg._offset += 3
        with pytest.raises(LegLost, match="sent token"):
            await asyncio.wait_for(answering, 1)
        await b.settle()


async def test_hundred_requests_at_once_all_end_and_give_everything_back() -> None:
    async with bench(limits=Limits()) as b:
        answers = await asyncio.gather(*(b.answer(request(max_tokens=20)) for _ in range(100)))
        assert set(answers) == {("x" * 20, "length")}
        await b.settle()


async def test_one_frame_a_step_however_many_streams() -> None:
    async with bench(decode=StubEngine(step_s=0.02), limits=Limits()) as b:
        await asyncio.gather(*(b.answer(request(max_tokens=10)) for _ in range(50)))
        client = b.table._clients["decode-0#1"]
        assert client.frames_received < 40, "a frame a step is about 12; a frame a token would be 500"
