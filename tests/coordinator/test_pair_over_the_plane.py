"""A coordinator and two stub engines over real sockets: both legs, one end, whatever happens."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests share bench.py; they are not a package

from bench import ONCE, Plain, bench, request, until

from disagg.coordinator.limits import Limits
from disagg.coordinator.phases import Phase
from disagg.errors import Cancelled, DeadlineExceeded, LegLost, NoReadyPair
from disagg.process.stub import StubEngine


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


async def test_a_prefill_that_has_sent_its_kv_is_not_aborted_when_the_text_stops() -> None:
    """Its last word tells how many bytes it sent; an abort would take that word from it."""
    async with bench(prefill=StubEngine(hold=True), decode=StubEngine(step_s=0.01), limits=ONCE) as b:
        answering = b.start(request(max_tokens=1000, text=Plain(stop_after=1)))
        assert await asyncio.wait_for(answering, 30) == ("x", "stop")
        await until(lambda: not b.decode.loads()[0].running)
        await asyncio.sleep(0.1)  # decode's last word comes back: that it was aborted is no failure of the try
        assert b.prefill.loads()[0].running == 1
        b.prefill.release()
        await b.settle()


@pytest.mark.parametrize("victim", ["prefill", "decode"])
async def test_the_first_leg_to_fail_ends_both(victim: str) -> None:
    async with bench(prefill=StubEngine(hold=True), decode=StubEngine(hold=True), limits=ONCE) as b:
        r = request()
        answering = asyncio.create_task(b.answer(r))
        while not (b.prefill.legs and b.decode.legs):
            await asyncio.sleep(0.01)
        (b.prefill if victim == "prefill" else b.decode).fail(r.id, "out of memory")
        with pytest.raises(LegLost, match="out of memory"):
            await asyncio.wait_for(answering, 30)
        await b.settle()
        assert b.prefill.loads()[0].running == b.decode.loads()[0].running == 0
        assert r.phase is Phase.FAILED


@pytest.mark.parametrize("victim", ["prefill-0", "decode-0"])
async def test_a_lost_host_ends_the_request_at_once(victim: str) -> None:
    async with bench(prefill=StubEngine(hold=True), decode=StubEngine(hold=True), limits=ONCE) as b:
        answering = asyncio.create_task(b.answer(request()))
        while not (b.prefill.legs and b.decode.legs):
            await asyncio.sleep(0.01)
        b.servers[victim].close()
        with pytest.raises(LegLost):
            await asyncio.wait_for(answering, 30)
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
            await asyncio.wait_for(answering, 30)
        await b.settle()
        assert not b.coordinator.cancel(r.id)


async def test_no_first_token_ends_at_its_deadline() -> None:
    async with bench(decode=StubEngine(hold=True)) as b:
        with pytest.raises(DeadlineExceeded, match="first token"):
            await b.answer(request())
        await b.settle()


async def test_engines_that_have_not_met_are_no_pair() -> None:
    async with bench(met=False) as b:
        assert not b.router.is_ready()
        with pytest.raises(NoReadyPair):
            await b.answer(request())


async def test_a_request_waits_for_a_pair_that_comes_in_time() -> None:
    async with bench(met=False, limits=Limits(no_pair_s=5)) as b:
        answering = asyncio.create_task(b.answer(request(max_tokens=2)))
        await asyncio.sleep(0.05)
        await b.meet()
        assert await asyncio.wait_for(answering, 30) == ("xx", "length")


async def test_frames_of_another_incarnation_are_dropped() -> None:
    async with bench() as b:
        b.servers["decode-0"].incarnation = 0
        with pytest.raises(DeadlineExceeded):
            await b.answer(request())


async def test_a_gap_in_the_tokens_is_a_failure_not_an_answer() -> None:
    async with bench(decode=StubEngine(step_s=0.02), limits=ONCE) as b:
        r = request(max_tokens=50)
        answering = asyncio.create_task(b.answer(r))
        while not r.emitted_ids:
            await asyncio.sleep(0.005)
        for session in b.servers["decode-0"].sessions:
            for leg in session._legs.values():
                leg._offset += 3
        with pytest.raises(LegLost, match="sent token"):
            await asyncio.wait_for(answering, 30)
        await b.settle()


async def test_hundred_requests_at_once_all_end_and_give_everything_back() -> None:
    async with bench(limits=Limits()) as b:
        answers = await asyncio.gather(*(b.answer(request(max_tokens=20)) for _ in range(100)))
        assert set(answers) == {("x" * 20, "length")}
        await b.settle()


async def test_one_frame_a_step_however_many_streams() -> None:
    async with bench(decode=StubEngine(step_s=0.02), limits=Limits()) as b:
        await asyncio.gather(*(b.answer(request(max_tokens=10)) for _ in range(50)))
        client = b.router.connections.clients["decode-0#1"]
        assert client is not None
        assert client.frames_received < 40, "a frame a step is about 12; a frame a token would be 500"
