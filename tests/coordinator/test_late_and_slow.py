"""What comes late, or is taken slowly, moves nothing that it should not."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests share bench.py; they are not a package

from bench import ONCE, Reader, bench, request, until, update

from disagg.coordinator.limits import Limits
from disagg.coordinator.phases import Phase
from disagg.errors import Cancelled, LegLost, NotANumber
from disagg.plane import messages as m
from disagg.plane.client import PlaneClient
from disagg.process.stub import FACTS, StubEngine
from disagg.registry.table import Table
from disagg.routing.connections import Connections
from disagg.routing.view import RoutingView
from tests.routing.engines import PickingRouter


class _NoAborts(StubEngine):
    """Its legs go on for a while after an abort, as a running chunk does."""

    def abort(self, _handle: object) -> None:
        pass


async def test_a_prefill_place_is_free_again_while_decode_goes_on() -> None:
    small = msgspec.structs.replace(FACTS, requests_max=2)
    async with bench(limits=ONCE, prefill=StubEngine(facts=small), decode=StubEngine(step_s=0.01)) as b:
        answering = [b.start(request(max_tokens=50)) for _ in range(6)]
        await until(lambda: len(b.decode.legs) == 6)
        assert b.coordinator.live, "they have not ended"
        assert await asyncio.gather(*answering) == [("x" * 50, "length")] * 6
        await b.settle()


async def test_an_earlier_try_that_still_runs_does_not_move_the_next_one() -> None:
    old_prefill = _NoAborts(hold=True)
    prefills = {"prefill_0": old_prefill, "prefill_1": StubEngine(hold=True)}
    async with bench(limits=Limits(), decode=StubEngine(hold=True), **prefills) as b:
        r = request()
        answering = b.start(r)
        await until(lambda: old_prefill.legs and b.decode.legs)
        old = next(iter(old_prefill._running))
        b.decode.fail(r.id, "out of memory")
        await until(lambda: b.engines["prefill-1"].legs)
        assert r.phase is Phase.DISPATCHED
        old.sink.on_stage("transferring", 99)
        await asyncio.sleep(0.05)
        assert r.phase is Phase.DISPATCHED
        old.sink.on_end("stop", "", 99, {"kv_bytes": 5.0})
        for engine in (b.engines["prefill-1"], b.decode):
            engine.release()
        assert await asyncio.wait_for(answering, 30) == ("x" * 8, "length")
        assert r.facts.kv_bytes is None
        assert r.usage["prompt_tokens_details"]["cached_tokens"] == 0


async def test_what_was_cached_is_known_before_a_short_answer_ends() -> None:
    """Prefill's end comes after its next chunk, which may be long."""
    prefill = _NoAborts(hold=True)
    async with bench(limits=Limits(), prefill=prefill, decode=StubEngine(hold=True)) as b:
        r = request(max_tokens=1)
        answering = b.start(r)
        await until(lambda: prefill.legs and b.decode.legs)
        next(iter(prefill._running)).sink.on_stage("transferring", 48)
        await until(lambda: r.phase is Phase.TRANSFERRING)
        b.decode.release()
        assert await asyncio.wait_for(answering, 30) == ("x", "length")
        assert r.usage["prompt_tokens_details"]["cached_tokens"] == 48
        prefill.release()
        await b.settle()


async def test_kv_has_come_when_the_first_token_has_though_prefill_looks_later() -> None:
    prefill = _NoAborts(hold=True)
    async with bench(limits=Limits(), prefill=prefill, decode=StubEngine(hold=True)) as b:
        r = request(max_tokens=1)
        answering = b.start(r)
        await until(lambda: prefill.legs and b.decode.legs)
        b.decode.release()
        assert await asyncio.wait_for(answering, 30) == ("x", "length")
        late_s = time.monotonic()
        handle = next(iter(prefill._running))
        prefill._running.discard(handle)
        handle.sink.on_end("length", "", 0, {"transfer_end": late_s, "kv_bytes": 8.0, "kv_transfer_s": 0.001})
        await b.settle()
        assert r.timeline["transfer_end"] == r.timeline["first_token"] < late_s
        assert r.timeline["transfer_start"] == r.timeline["first_token"] - 0.001


async def test_a_cancel_that_comes_after_a_lost_leg_is_not_lost() -> None:
    async with bench(limits=Limits(), decode_0=StubEngine(step_s=0.01), decode_1=StubEngine(step_s=0.01)) as b:
        r, reader = request(max_tokens=100), Reader()
        answering = asyncio.create_task(b.coordinator.run(r, reader))
        await until(lambda: reader.pieces)
        reader.opened = False  # and now the client takes its time
        await until(lambda: b.coordinator.attempts[r.id].decode.unsent)
        next(e for n, e in b.engines.items() if n.startswith("decode") and e.legs).fail(r.id, "no luck")
        await asyncio.sleep(0.05)
        assert b.coordinator.cancel(r.id)
        reader.opened = True
        with pytest.raises(Cancelled):
            await asyncio.wait_for(answering, 30)
        assert r.phase is Phase.CANCELLED
        assert len(r.emitted_ids) > 1, "what came before"
        await b.settle()


async def test_a_slow_client_is_no_stalled_engine() -> None:
    async with bench(limits=replace(Limits(), next_token_s=0.1), decode=StubEngine(step_s=0.01)) as b:
        r, reader = request(max_tokens=10), Reader()
        answering = asyncio.create_task(b.coordinator.run(r, reader))
        await until(lambda: reader.pieces)
        reader.opened = False
        await asyncio.sleep(0.3)
        await until(lambda: b.coordinator.attempts[r.id].decode.end)
        before = len(reader.pieces)
        reader.opened = True
        await asyncio.wait_for(answering, 30)
        assert (r.tries, len(r.emitted_ids), r.failed_on) == (1, 10, set())
        assert len(reader.pieces) == before + 1, "what came meanwhile is one piece"


async def test_a_good_end_does_not_make_up_for_lost_tokens() -> None:
    async with bench(limits=ONCE, decode=StubEngine(hold=True)) as b:
        answering = b.start(request())
        await until(lambda: b.decode.legs)
        session = next(s for s in b.servers["decode-0"].sessions if s._legs)
        (number,) = session._legs
        session.send(m.Step(1, [m.Delta(number, 3, [7])], [m.LegEnd(number, "length")]))
        with pytest.raises(LegLost, match="sent token 3 after 0"):
            await asyncio.wait_for(answering, 30)


async def test_tokens_that_come_with_the_end_are_one_piece_with_it() -> None:
    async with bench(limits=ONCE, decode=StubEngine(hold=True)) as b:
        r, reader = request(max_tokens=2), Reader()
        answering = asyncio.create_task(b.coordinator.run(r, reader))
        await until(lambda: b.decode.legs)
        session = next(s for s in b.servers["decode-0"].sessions if s._legs)
        (number,) = session._legs
        session.send(m.Step(1, [m.Delta(number, 0, [7, 8])], [m.LegEnd(number, "length")]))
        await asyncio.wait_for(answering, 30)
        assert (reader.pieces, reader.finish_reason) == ([("xx", [7, 8])], "length")


async def test_what_an_engine_still_says_of_a_try_that_is_over_reaches_nobody() -> None:
    """A decode engine that goes on after an abort, as in a running chunk, while another one has the request."""
    decodes = {f"decode_{n}": _NoAborts(step_s=0.01, token=None) for n in (0, 1)}
    async with bench(limits=Limits(), **decodes) as b:
        r, reader = request(max_tokens=60), Reader()
        answering = asyncio.create_task(b.coordinator.run(r, reader))
        await until(lambda: len(r.emitted_ids) >= 10)
        first = b.coordinator.attempts[r.id].decode
        first.attempt.fail(LegLost, "somebody wants it elsewhere", first.endpoint.life)
        received = first.received
        await asyncio.wait_for(answering, 30)
        assert first.received > received
        assert reader.token_ids == r.emitted_ids == [*range(3, 63)]
        assert r.tries == 2
        await b.settle()


async def test_what_comes_after_a_client_has_left_is_not_put_into_its_sink(caplog: pytest.LogCaptureFixture) -> None:
    async with bench(limits=Limits(), decode=_NoAborts(step_s=0.01, token=None)) as b:
        r, reader = request(max_tokens=40), Reader()
        answering = asyncio.create_task(b.coordinator.run(r, reader))
        await until(lambda: len(r.emitted_ids) >= 3)
        attempt = b.coordinator.attempts[r.id]
        answering.cancel()
        await asyncio.wait([answering])
        put = len(reader.pieces)
        await until(lambda: attempt.decode.end)
        assert attempt.decode.received == 40
        assert (len(reader.pieces), r.phase) == (put, Phase.CANCELLED)
        assert "nobody foresaw" not in caplog.text
        await b.settle()


async def test_a_request_that_waits_does_not_get_the_engine_whose_connection_has_just_ended() -> None:
    small = msgspec.structs.replace(FACTS, requests_max=1)
    decodes = {f"decode_{n}": StubEngine(hold=True, facts=small) for n in (0, 1)}
    async with bench(limits=ONCE, **decodes) as b:
        running = [b.start(request()), b.start(request())]
        await until(lambda: all(b.engines[f"decode-{n}"].legs for n in (0, 1)))
        r = request()
        waiting = b.start(r)
        await until(lambda: len(b.coordinator.admission) == 1)
        b.servers["decode-0"].close()
        await asyncio.sleep(0.05)
        b.engines["decode-1"].release()
        assert await asyncio.wait_for(waiting, 30) == ("x" * 8, "length")
        assert r.tries == 1
        await asyncio.gather(*running, return_exceptions=True)


async def test_a_hosts_first_report_counts() -> None:
    small = msgspec.structs.replace(FACTS, requests_max=1)
    async with bench(limits=ONCE, decode=StubEngine(hold=True, facts=small)) as b:
        running = b.start(request())
        await until(lambda: b.decode.legs)
        late = PickingRouter(Connections(b"s" * 32))
        await update(late.connections, b.registry.view())
        assert late.is_ready()
        assert late.pick(RoutingView(prompt_tokens=3, new_tokens=8)) is None
        late.connections.apply(Table().view())
        b.decode.release()
        await running


async def test_a_connection_that_is_given_up_is_closed() -> None:
    closed = asyncio.Event()

    async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        closed.set()
        writer.close()

    silent = await asyncio.start_server(never_answer, "127.0.0.1", 0)
    async with silent:
        lost: list[str] = []
        port = silent.sockets[0].getsockname()[1]
        client = PlaneClient(f"127.0.0.1:{port}", 1, b"s" * 32, lost.append)
        with pytest.raises(LegLost, match="no answer in time"):
            await client.connect(0.1)
        await asyncio.wait_for(closed.wait(), 30)
        assert not lost


async def test_a_silent_frontend_is_dropped_with_its_legs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("disagg.plane.server.LOOK_S", 0.05)
    monkeypatch.setattr("disagg.plane.server.SILENT_S", 0.2)
    monkeypatch.setattr("disagg.plane.client.PING_S", 30.0)
    async with bench(limits=ONCE, decode=StubEngine(hold=True)) as b:
        answering = b.start(request())
        await until(lambda: b.decode.legs)
        with pytest.raises(LegLost):
            await asyncio.wait_for(answering, 30)
        assert b.decode.loads()[0].running == 0


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_leg_whose_logits_are_no_numbers_ends_its_request_and_no_other_engine_gets_it(role: str) -> None:
    async with bench(limits=Limits(), prefill=StubEngine(hold=True), decode=StubEngine(hold=True)) as b:
        r = request()
        answering = b.start(r)
        await until(lambda: b.engines[f"{role}-0"].legs)
        b.engines[f"{role}-0"].fail(r.id, "NaN among its logits", m.NOT_A_NUMBER)
        with pytest.raises(NotANumber, match=rf"is not a number \({role}\); try other values"):
            await asyncio.wait_for(answering, 30)
        assert (r.tries, r.failed_on, r.phase) == (1, set(), Phase.FAILED)
        assert NotANumber.http_status == 500
        await b.settle()


async def test_a_cancel_frees_the_engines_while_the_client_does_not_read() -> None:
    async with bench(limits=Limits(), decode=StubEngine(step_s=0.01)) as b:
        r, reader = request(max_tokens=10_000), Reader()
        answering = asyncio.create_task(b.coordinator.run(r, reader))
        await until(lambda: reader.pieces)
        reader.opened = False
        await until(lambda: b.coordinator.attempts[r.id].decode.unsent)
        assert b.coordinator.cancel(r.id)
        await until(lambda: not any(sum(server.ledger.requests) for server in b.servers.values()), 5)
        assert not answering.done()
        reader.opened = True
        with pytest.raises(Cancelled):
            await asyncio.wait_for(answering, 30)
        await b.settle()
