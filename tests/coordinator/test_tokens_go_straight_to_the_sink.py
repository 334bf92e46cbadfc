"""Tokens go straight from the plane to the request's sink; its task wakes for a slow client, and at the end."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from bench import ONCE, Plain, Reader, bench, request, until

from disagg.coordinator.attempt import Attempt
from disagg.coordinator.limits import Limits
from disagg.coordinator.phases import Phase
from disagg.coordinator.remembered import Remembered
from disagg.errors import DeadlineExceeded, LegLost, RequestError
from disagg.plane import messages as m
from disagg.process.stub import StubEngine


async def test_a_step_is_a_piece_and_the_task_sleeps_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    woken, wake = 0, Attempt.wake

    def counted(self: Attempt) -> None:
        nonlocal woken
        woken += 1
        wake(self)

    monkeypatch.setattr(Attempt, "wake", counted)
    async with bench(decode=StubEngine(step_s=0.005, token=None)) as b:
        r, reader = request(max_tokens=10), Reader()
        await b.coordinator.run(r, reader)
        assert reader.finish_reason == "length"
        assert reader.token_ids == r.emitted_ids == list(range(3, 13))
        assert len(reader.pieces) >= 8, "a step, a piece"
        assert woken == 1
        await b.settle()


async def test_many_steps_in_one_read_are_one_piece() -> None:
    async with bench(decode=StubEngine(per_step=4, token=None)) as b:
        r, reader = request(max_tokens=2000), Reader()
        await b.coordinator.run(r, reader)
        assert len(reader.pieces) < 400
        assert r.emitted_ids == list(range(3, 2003))


async def test_a_stop_string_ends_the_request() -> None:
    async with bench(decode=StubEngine(step_s=0.005)) as b:
        r, reader = request(max_tokens=1000, text=Plain(stop_after=5)), Reader()
        await asyncio.wait_for(b.coordinator.run(r, reader), 30)
        assert (reader.text, reader.finish_reason) == ("xxxxx", "stop")
        assert len(r.emitted_ids) == 5
        await b.settle()


async def test_what_a_closed_sink_does_not_take_is_one_piece_when_it_opens() -> None:
    async with bench(decode=StubEngine(step_s=0.005, token=None)) as b:
        r, reader = request(max_tokens=10), Reader(opened=False)
        answering = asyncio.create_task(b.coordinator.run(r, reader))
        await until(lambda: r.id in b.coordinator.attempts)
        attempt = b.coordinator.attempts[r.id]
        await until(lambda: attempt.decode.end)
        assert (reader.pieces, r.emitted_ids) == ([], [])
        reader.opened = True
        await asyncio.wait_for(answering, 30)
        assert [ids for _, ids in reader.pieces] == [list(range(3, 13))]
        assert reader.finish_reason == "length"
        await b.settle()


async def test_a_client_that_leaves_while_it_is_slow_leaves_nothing() -> None:
    async with bench(decode=StubEngine(step_s=0.005)) as b:
        r, reader = request(max_tokens=1000), Reader(opened=False)
        answering = asyncio.create_task(b.coordinator.run(r, reader))
        await until(lambda: r.id in b.coordinator.attempts and b.coordinator.attempts[r.id].decode.unsent)
        answering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answering
        await b.settle()
        assert (reader.pieces, r.phase) == ([], Phase.CANCELLED)


async def test_a_sink_that_breaks_ends_its_own_request_alone() -> None:
    async with bench(limits=ONCE, decode=StubEngine(step_s=0.005)) as b:
        broken, other, reader = request(max_tokens=30), request(max_tokens=30), Reader()
        reader.raises = True
        well = asyncio.create_task(b.coordinator.run(other, Reader()))
        with pytest.raises(RequestError, match="internal error"):
            await b.coordinator.run(broken, reader)
        await well
        assert len(other.emitted_ids) == 30
        await b.settle()


async def test_the_deadline_of_the_next_token_moves_on_with_each_token() -> None:
    limits = replace(Limits(), next_token_s=0.1, retry_limit=0, migration_limit=0)
    engine = StubEngine(step_s=0.02)
    async with bench(limits=limits, decode=engine) as b:
        r = request(max_tokens=15)  # three times as long as the deadline
        await b.coordinator.run(r, Reader())
        assert (r.tries, len(r.emitted_ids)) == (1, 15)
        r = request(max_tokens=1000)
        reading = asyncio.create_task(b.coordinator.run(r, Reader()))
        await asyncio.sleep(0.2)
        engine.freeze()
        with pytest.raises(DeadlineExceeded, match="next_token_s"):
            await asyncio.wait_for(reading, 30)


async def test_what_is_remembered_of_a_request_holds_none_of_its_tokens() -> None:
    async with bench() as b:
        r = request(max_tokens=5)
        await b.answer(r)
        kept = b.coordinator.find(r.id)
        assert isinstance(kept, Remembered)
        assert (kept.usage["completion_tokens"], kept.phase) == (5, Phase.FINISHED)


async def test_an_answer_that_a_stop_string_has_ended_is_not_lost_with_its_engine() -> None:
    """Both in one turn of the loop: the stop string came first."""
    async with bench(limits=ONCE, decode=StubEngine(step_s=0.01)) as b:
        r = request(max_tokens=1000, text=Plain(stop_after=5))

        class Ending(Reader):
            def put(self, text: str, token_ids: list[int]) -> None:
                super().put(text, token_ids)
                if r.text.stopped and r.id in b.coordinator.attempts:
                    asyncio.get_running_loop().call_soon(b.servers["decode-0"].close)
                    b.coordinator.attempts[r.id].fail(LegLost, "the connection ended", "decode-0#1")

        reader = Ending()
        await asyncio.wait_for(b.coordinator.run(r, reader), 30)
        assert (reader.finish_reason, len(r.emitted_ids), r.tries) == ("stop", 5, 1)


async def test_tokens_at_which_a_sink_breaks_are_counted_once() -> None:
    async with bench(limits=ONCE, decode=StubEngine(step_s=0.01, token=None)) as b:
        r, reader = request(max_tokens=30), Reader()
        reader.raises = True
        with pytest.raises(RequestError, match="internal error"):
            await b.coordinator.run(r, reader)
        assert r.emitted_ids == list(range(3, 3 + len(r.emitted_ids)))


@pytest.mark.parametrize("comes", ["end", "tokens"])
async def test_nothing_follows_a_piece_at_which_the_sink_broke(comes: str) -> None:
    """An answer with a hole must not end well, nor go on: not even by what came before its task woke."""
    async with bench(limits=ONCE, decode=StubEngine(hold=True)) as b:
        r = request(max_tokens=4)

        class Breaks(Reader):
            def put(self, text: str, token_ids: list[int]) -> None:
                if not self.raises:
                    super().put(text, token_ids)
                    return
                self.raises = False
                leg = b.coordinator.attempts[r.id].decode
                if comes == "tokens":
                    asyncio.get_running_loop().call_soon(leg.on_tokens, leg.received, [7])
                else:
                    asyncio.get_running_loop().call_soon(leg.on_end, m.LegEnd(leg.number, "stop"))
                raise ZeroDivisionError

        reader = Breaks()
        reader.raises = True
        answering = asyncio.create_task(b.coordinator.run(r, reader))
        await until(lambda: r.id in b.coordinator.attempts)
        leg = b.coordinator.attempts[r.id].decode
        await until(lambda: b.decode.legs)
        leg.on_tokens(0, [5])
        with pytest.raises(RequestError, match="internal error"):
            await asyncio.wait_for(answering, 30)
        assert (reader.pieces, reader.finish_reason) == ([], None)
