"""Tokens go straight to a request's output once its first piece has come; the generator brings the rest."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from bench import ONCE, Bench, Plain, bench, request

from disagg.coordinator.coordinator import Limits
from disagg.coordinator.phases import Phase
from disagg.coordinator.request import Piece, Remembered, Request
from disagg.errors import DeadlineExceeded, LegLost, RequestError
from disagg.process.stub import StubEngine


class Output:
    def __init__(self) -> None:
        self.pieces: list[tuple[str, list[int]]] = []
        self.opened = True
        self.raises = False

    def is_open(self) -> bool:
        return self.opened

    def put(self, text: str, token_ids: list[int]) -> None:
        if self.raises:
            raise ZeroDivisionError
        self.pieces.append((text, token_ids))


async def read(b: Bench, of: Request, output: Output, pieces: list[Piece]) -> None:
    async for piece in b.coordinator.generate(of):
        pieces.append(piece)
        of.output = output


async def test_between_the_first_and_the_last_piece_the_generator_sleeps() -> None:
    async with bench(decode=StubEngine(step_s=0.005, token=None)) as b:
        r, output, pieces = request(max_tokens=10), Output(), list[Piece]()
        await read(b, r, output, pieces)
        assert [piece.finish_reason for piece in pieces] == [None, "length"]
        ids = pieces[0].token_ids + [each for _, ids in output.pieces for each in ids] + pieces[1].token_ids
        assert ids == r.emitted_ids == list(range(3, 13))
        assert len(output.pieces) >= 7, "a step, a piece"
        await b.settle()


async def test_many_steps_in_one_read_are_one_piece() -> None:
    async with bench(decode=StubEngine(per_step=4, token=None)) as b:
        r, output, pieces = request(max_tokens=2000), Output(), list[Piece]()
        await read(b, r, output, pieces)
        assert len(output.pieces) < 400
        assert r.emitted_ids == list(range(3, 2003))


async def test_a_stop_string_on_the_straight_way_ends_the_request() -> None:
    async with bench(decode=StubEngine(step_s=0.005)) as b:
        r, output, pieces = request(max_tokens=1000, text=Plain(stop_after=5)), Output(), list[Piece]()
        await asyncio.wait_for(read(b, r, output, pieces), 30)
        assert pieces[-1].finish_reason == "stop"
        assert "".join([p.text for p in pieces] + [text for text, _ in output.pieces]) == "xxxxx"
        assert len(r.emitted_ids) == 5
        await b.settle()


async def test_what_a_closed_output_does_not_take_comes_through_the_generator() -> None:
    async with bench(decode=StubEngine(step_s=0.005, token=None)) as b:
        r, output, pieces = request(max_tokens=10), Output(), list[Piece]()
        output.opened = False
        await read(b, r, output, pieces)
        assert output.pieces == []
        assert [each for piece in pieces for each in piece.token_ids] == list(range(3, 13))


async def test_an_output_that_breaks_ends_its_own_request_alone() -> None:
    async with bench(limits=ONCE, decode=StubEngine(step_s=0.005)) as b:
        broken, other, output = request(max_tokens=30), request(max_tokens=30), Output()
        output.raises = True
        well = asyncio.create_task(read(b, other, Output(), []))
        with pytest.raises(RequestError, match="internal error"):
            await read(b, broken, output, [])
        await well
        assert len(other.emitted_ids) == 30
        await b.settle()


async def test_the_deadline_of_the_next_token_moves_on_with_tokens_that_went_straight() -> None:
    limits = replace(Limits(), next_token_s=0.1, retry_limit=0, migration_limit=0)
    engine = StubEngine(step_s=0.02)
    async with bench(limits=limits, decode=engine) as b:
        r = request(max_tokens=15)  # three times as long as the deadline
        await read(b, r, Output(), [])
        assert (r.tries, len(r.emitted_ids)) == (1, 15)
        r = request(max_tokens=1000)
        reading = asyncio.create_task(read(b, r, Output(), []))
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
        r, pieces = request(max_tokens=1000, text=Plain(stop_after=5)), list[Piece]()

        class Ending(Output):
            def put(self, text: str, token_ids: list[int]) -> None:
                super().put(text, token_ids)
                if r.text.stopped:
                    asyncio.get_running_loop().call_soon(b.servers["decode-0"].close)
                    b.coordinator.attempts[r.id].fail(LegLost, "the connection ended", "decode-0#1")

        await asyncio.wait_for(read(b, r, Ending(), pieces), 30)
        assert (pieces[-1].finish_reason, len(r.emitted_ids), r.tries) == ("stop", 5, 1)


async def test_tokens_at_which_an_output_breaks_are_counted_once() -> None:
    async with bench(limits=ONCE, decode=StubEngine(step_s=0.01, token=None)) as b:
        r, output, pieces = request(max_tokens=30), Output(), list[Piece]()
        output.raises = True
        with pytest.raises(RequestError, match="internal error"):
            await read(b, r, output, pieces)
        assert r.emitted_ids == list(range(3, 3 + len(r.emitted_ids)))
