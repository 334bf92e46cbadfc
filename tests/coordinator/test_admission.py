"""Overload is not failure: requests wait in a bounded queue, and are told when it is too long."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests share bench.py; they are not a package

from bench import Reader, bench, request, until, update

from disagg.coordinator.coordinator import Coordinator
from disagg.coordinator.limits import Limits
from disagg.coordinator.phases import Phase
from disagg.errors import Cancelled, NoReadyPair, Overloaded
from disagg.plane.engine import EngineFacts
from disagg.plane.server import REPORT_S
from disagg.process.stub import StubEngine
from disagg.registry.records import State
from disagg.registry.table import Table
from disagg.roles import Role
from disagg.routing.connections import Connections
from disagg.routing.endpoints import NOTHING, Endpoint
from disagg.routing.policies.least_loaded import Weighed
from disagg.routing.view import RoutingView
from tests.routing.engines import PickingRouter


def _small(requests_max: int = 2, kv_tokens: int = 1 << 20, **more: object) -> StubEngine:
    facts = EngineFacts(
        ranks=1,
        context_length=8192,
        kv_tokens=kv_tokens,
        request_tokens_max=8192,
        requests_max=requests_max,
        page_size=16,
        pids={},
    )
    return StubEngine(facts=facts, **more)  # type: ignore[arg-type]


async def test_a_full_queue_refuses_at_once() -> None:
    async with bench(limits=Limits(queue_max=1), decode=_small(hold=True)) as b:
        running = [b.start(request()) for _ in range(3)]
        await until(lambda: len(b.decode.legs) == 2 and len(b.coordinator.admission) == 1)
        with pytest.raises(Overloaded, match="wait already"):  # and nothing has been given back meanwhile
            await b.answer(request())
        b.decode.release()
        assert await asyncio.gather(*running) == [("x" * 8, "length")] * 3
        await b.settle()


async def test_the_queue_has_a_deadline() -> None:
    async with bench(limits=Limits(queue_s=0.2), decode=_small(hold=True)) as b:
        running = [b.start(request()) for _ in range(2)]
        await until(lambda: len(b.decode.legs) == 2)
        with pytest.raises(Overloaded, match="no room"):
            await b.answer(request())
        b.decode.release()
        await asyncio.gather(*running)


async def test_first_come_first_served() -> None:
    async with bench(limits=Limits(), decode=_small(requests_max=1, hold=True)) as b:
        requests = [request() for _ in range(5)]
        answering = []
        for each in requests:
            answering.append(b.start(each))
            await asyncio.sleep(0.01)
        b.decode.release()
        await asyncio.gather(*answering)
        assert [leg.id[:32] for leg in b.decode.legs] == [each.id for each in requests]


async def test_kv_is_counted_before_it_is_used() -> None:
    """Room for two requests of 3 + 8 tokens in pages of 16, although many more might run at once."""
    async with bench(limits=Limits(), decode=_small(requests_max=64, kv_tokens=32, hold=True)) as b:
        answering = [b.start(request()) for _ in range(3)]
        await until(lambda: len(b.decode.legs) == 2)
        await asyncio.sleep(0.05)
        assert len(b.decode.legs) == 2
        b.decode.release()
        await asyncio.gather(*answering)
        await b.settle()


async def test_why_a_pair_was_chosen_is_a_fact_of_the_request() -> None:
    """The second one finds the first on both sides: 3 + 8 tokens on decode, 3 + 1 on prefill, in pages of 16."""
    async with bench(limits=Limits(), prefill=_small(hold=True), decode=_small(hold=True)) as b:
        requests = [request(), request()]
        answering = [b.start(each) for each in requests]
        await until(lambda: len(b.decode.legs) == 2)
        assert [each.facts.routed for each in requests] == [Weighed(0, 0, 0), Weighed(0, 2, 32)]
        b.prefill.release()
        b.decode.release()
        await asyncio.gather(*answering)


async def test_what_one_frontend_took_another_sees() -> None:
    async with bench(limits=Limits(), decode=_small(hold=True)) as b:
        other = PickingRouter(Connections(b"s" * 32))
        await update(other.connections, b.registry.view())
        answering = [b.start(request()) for _ in range(2)]
        await until(lambda: len(b.decode.legs) == 2)

        def has_room() -> bool:
            if (reservation := other.pick(RoutingView(prompt_tokens=3, new_tokens=8))) is None:
                return False
            reservation.release()
            return True

        await until(lambda: not has_room())
        b.decode.release()
        await asyncio.gather(*answering)
        await until(has_room)
        other.connections.apply(Table().view())


async def test_a_refusal_sends_the_request_back_to_the_queue_and_blames_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    refused_tokens: list[int] = []
    real = Endpoint.on_refused

    def on_refused(endpoint: Endpoint, tokens: int) -> None:
        refused_tokens.append(tokens)
        real(endpoint, tokens)

    monkeypatch.setattr(Endpoint, "on_refused", on_refused)
    async with bench(limits=Limits(), decode=_small(hold=True)) as b:
        unaware = PickingRouter(Connections(b"s" * 32))
        await update(unaware.connections, b.registry.view())
        second = Coordinator(unaware, Limits())
        answering = [b.start(request()) for _ in range(2)]
        await until(lambda: len(b.decode.legs) == 2)
        await asyncio.sleep(2 * REPORT_S)
        for role in Role:
            for endpoint in list(unaware.endpoints.of(role)):
                endpoint.report(NOTHING)  # as if none had come
        r = request()
        reader = Reader()
        refused = asyncio.create_task(second.run(r, reader))
        await until(lambda: r.tries == 1 and r.phase is Phase.QUEUED)
        assert not r.facts.lost_tries
        assert not r.failed_on
        assert refused_tokens == [3 + 8]
        decode = next(iter(unaware.endpoints.of(Role.DECODE)))
        await until(lambda: decode.reported.requests == 2)  # a host that refuses says what it has
        b.decode.release()
        await refused
        assert reader.text == "x" * 8
        await asyncio.gather(*answering)
        await b.settle()
        unaware.connections.apply(Table().view())


async def test_cancelled_in_the_queue() -> None:
    async with bench(limits=Limits(), decode=_small(requests_max=1, hold=True)) as b:
        running, waits = b.start(request()), request()
        await until(lambda: b.decode.legs)
        waiting = b.start(waits)
        await until(lambda: len(b.coordinator.admission) == 1)
        assert b.coordinator.cancel(waits.id)
        with pytest.raises(Cancelled):
            await asyncio.wait_for(waiting, 30)
        assert waits.phase is Phase.CANCELLED
        b.decode.release()
        await running
        await b.settle()


async def test_a_client_that_leaves_the_queue_does_not_hold_up_the_next() -> None:
    async with bench(limits=Limits(), decode=_small(requests_max=1, hold=True)) as b:
        running = b.start(request())
        await until(lambda: b.decode.legs)
        leaving, staying = b.start(request()), b.start(request())
        await until(lambda: len(b.coordinator.admission) == 2)
        leaving.cancel()
        b.decode.release()
        assert await asyncio.gather(running, staying) == [("x" * 8, "length")] * 2
        await b.settle()


async def test_engines_that_vanish_while_one_waits_for_room_are_a_503_not_a_429() -> None:
    limits = replace(Limits(), queue_s=5, no_pair_s=0.2, retry_limit=0)
    async with bench(limits=limits, decode=_small(requests_max=1, hold=True)) as b:
        running = b.start(request())
        await until(lambda: b.decode.legs)
        waiting = b.start(request())
        await until(lambda: len(b.coordinator.admission) == 1)
        await b.change("decode-0", state=State.DEAD)
        with pytest.raises(NoReadyPair):
            await asyncio.wait_for(waiting, 30)
        with pytest.raises(Exception, match="ended its leg"):
            await running


async def test_a_connection_that_broke_under_a_ready_engine_is_made_again() -> None:
    async with bench(limits=Limits(no_pair_s=3)) as b:
        assert await b.answer(request()) == ("x" * 8, "length")
        before = b.router.connections.clients["decode-0#1"]
        for session in list(b.servers["decode-0"].sessions):
            session.connection.close("a cable was pulled")  # type: ignore[union-attr]
        await until(lambda: b.router.connections.clients.get("decode-0#1") not in (before, None))
        assert await b.answer(request()) == ("x" * 8, "length")


async def test_an_engine_that_does_not_answer_holds_up_no_news_of_others() -> None:
    """A new record may name a host that is silent; the next one that another engine is dead."""
    writers: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda _reader, writer: writers.append(writer), "127.0.0.1", 0)
    async with silent, bench(limits=Limits(no_pair_s=3)) as b:
        following = asyncio.create_task(b.router.connections.follow(b.registry.watch()))
        port = silent.sockets[0].getsockname()[1]
        decode = b.registry.records["decode-0"]
        b.registry.put(msgspec.structs.replace(decode, id="decode-1", plane=f"127.0.0.1:{port}"))
        await asyncio.sleep(0.05)
        b.registry.put(msgspec.structs.replace(decode, state=State.DEAD))
        await until(lambda: not b.router.is_ready(), limit_s=0.5)
        following.cancel()
        for writer in writers:
            writer.transport.abort()
