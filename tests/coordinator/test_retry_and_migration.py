"""A leg is lost: before the first token the request is tried again, after it the stream goes on elsewhere."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests share bench.py; they are not a package

from bench import Bench, Plain, Reader, bench, request, until

from disagg.coordinator.limits import Limits
from disagg.coordinator.phases import Phase
from disagg.errors import Cancelled, DeadlineExceeded, LegLost, NoReadyPair
from disagg.plane.engine import Leg, LegSink
from disagg.process.stub import StubEngine
from disagg.registry.records import State


def _positions() -> StubEngine:
    """A token a step, each its own position: a gap or a repeat would show."""
    return StubEngine(step_s=0.01, token=None)


def _two_decodes(limits: Limits = Limits()) -> object:
    return bench(limits=limits, decode_0=_positions(), decode_1=_positions())


def _serving(b: Bench, request_id: str) -> str:
    return next(n for n, e in b.engines.items() if n.startswith("decode") and any(e.running(request_id)))


async def test_a_stream_moves_to_another_decode_engine_and_no_token_is_lost_or_doubled() -> None:
    async with _two_decodes() as b:  # type: ignore[attr-defined]
        r = request(max_tokens=60)
        answering = b.start(r)
        await until(lambda: len(r.emitted_ids) >= 10)
        victim = _serving(b, r.id)
        b.servers[victim].close()
        assert await asyncio.wait_for(answering, 30) == ("x" * 60, "length")
        assert r.emitted_ids == [*range(3, 63)]
        assert r.usage["completion_tokens"] == 60
        assert [lost.on for lost in r.facts.lost_tries] == [f"prefill-0#1/0 + {victim}#1/0"]
        assert len(r.facts.pauses_ms) == 1
        assert r.tries == 2


async def test_an_engine_in_quarantine_loses_its_streams_to_others_at_once() -> None:
    async with _two_decodes() as b:  # type: ignore[attr-defined]
        r = request(max_tokens=60)
        answering = b.start(r)
        await until(lambda: len(r.emitted_ids) >= 5)
        await b.change(_serving(b, r.id), state=State.QUARANTINED)
        assert await asyncio.wait_for(answering, 30) == ("x" * 60, "length")
        assert r.emitted_ids == [*range(3, 63)]
        await b.settle()


async def test_a_stop_string_counts_over_a_migration() -> None:
    async with _two_decodes() as b:  # type: ignore[attr-defined]
        r = request(max_tokens=1000, text=Plain(stop_after=30))
        answering = b.start(r)
        await until(lambda: len(r.emitted_ids) >= 10)
        b.servers[_serving(b, r.id)].close()
        assert await asyncio.wait_for(answering, 30) == ("x" * 30, "stop")


async def test_before_the_first_token_a_request_is_tried_again_on_another_pair() -> None:
    async with bench(limits=Limits(), prefill_0=StubEngine(hold=True), prefill_1=StubEngine(hold=True)) as b:
        decode = b.decode
        decode._free.clear()
        r = request(max_tokens=5)
        answering = b.start(r)
        await until(lambda: decode.legs)
        first = next(n for n, e in b.engines.items() if n.startswith("prefill") and e.legs)
        b.engines[first].fail(r.id, "out of memory")
        await until(lambda: len(decode.legs) == 2)
        decode.release()
        assert await asyncio.wait_for(answering, 30) == ("xxxxx", "length")
        other = "prefill-1" if first == "prefill-0" else "prefill-0"
        assert str(r.facts.prefill) == f"{other}#1/0"
        assert [leg.id for leg in decode.legs] == [f"{r.id}01", f"{r.id}02"], "legs of one request share no id"
        for each in b.engines.values():
            each.release()
        await b.settle()


async def test_a_prefill_that_dies_after_the_first_token_is_none_of_the_streams_business() -> None:
    async with bench(limits=Limits(), prefill=StubEngine(hold=True), decode=_positions()) as b:
        r = request(max_tokens=40)
        answering = b.start(r)
        await until(lambda: r.emitted_ids)
        b.servers["prefill-0"].close()
        assert await asyncio.wait_for(answering, 30) == ("x" * 40, "length")
        assert r.tries == 1


class _NoLastWord(StubEngine):
    """All tokens come, the end does not."""

    def submit(self, leg: Leg, sink: LegSink) -> object:
        class Mute:
            on_tokens = staticmethod(sink.on_tokens)
            on_stage = staticmethod(sink.on_stage)

            @staticmethod
            def on_end(reason: str, *rest: Any) -> None:
                if reason != "length":
                    sink.on_end(reason, *rest)

        return super().submit(leg, Mute())


async def test_an_engine_lost_after_the_last_token_costs_nothing() -> None:
    async with bench(limits=Limits(), decode=_NoLastWord(step_s=0.01, token=None)) as b:
        r = request(max_tokens=10)
        answering = b.start(r)
        await until(lambda: len(r.emitted_ids) == 10)
        b.servers["decode-0"].close()
        assert await asyncio.wait_for(answering, 30) == ("x" * 10, "length")
        assert (r.tries, r.emitted_ids) == (1, [*range(3, 13)])


async def test_an_engine_lost_after_an_ending_token_costs_nothing() -> None:
    async with bench(limits=Limits(), decode=_NoLastWord(step_s=0.03, token=None)) as b:
        r = request(max_tokens=1000)
        r.end_ids = frozenset({7})
        answering = b.start(r)
        await until(lambda: r.emitted_ids[-1:] == [7])
        b.servers["decode-0"].close()
        assert await asyncio.wait_for(answering, 30) == ("x" * 5, "stop")
        assert (r.tries, r.emitted_ids) == (1, [3, 4, 5, 6, 7])


async def test_tries_are_bounded() -> None:
    async with bench(limits=Limits(retry_limit=2), decode=StubEngine(hold=True)) as b:
        r = request()
        answering = b.start(r)
        for number in range(1, 4):
            await until(lambda number=number: len(b.decode.legs) == number)
            b.decode.fail(r.id, "no luck")
        with pytest.raises(LegLost, match="no luck"):
            await asyncio.wait_for(answering, 30)
        assert r.phase is Phase.FAILED
        await b.settle()


async def test_migrations_are_bounded() -> None:
    async with bench(limits=Limits(migration_limit=1), decode=_positions()) as b:
        r = request(max_tokens=1000)
        answering = b.start(r)
        for number in (1, 2):
            await until(lambda number=number: r.tries == number and len(r.emitted_ids) > 5 * number)
            b.decode.fail(r.id, "no luck")
        with pytest.raises(LegLost, match="no luck"):
            await asyncio.wait_for(answering, 30)


@pytest.mark.parametrize(
    ("sampling", "why"),
    [
        *[({f"{name}_penalty": 0.5}, "penalties count") for name in ("frequency", "presence", "repetition")],
        *[({name: "x"}, "its grammar stands where") for name in ("json_schema", "regex", "ebnf", "structural_tag")],
        ({"stop_regex": ["a"]}, "its stop_regex looks for"),
    ],
)
async def test_what_cannot_migrate_is_told_why(sampling: dict[str, Any], why: str) -> None:
    async with bench(limits=Limits(), decode=_positions()) as b:
        r = request(max_tokens=1000, **sampling)
        answering = b.start(r)
        await until(lambda: len(r.emitted_ids) > 3)
        b.decode.fail(r.id, "no luck")
        with pytest.raises(LegLost, match=why):
            await asyncio.wait_for(answering, 30)


async def test_what_is_constrained_is_tried_again_from_its_start_before_its_first_token() -> None:
    async with bench(limits=Limits(), decode=StubEngine(step_s=0.01, token=None, hold=True)) as b:
        r = request(max_tokens=5, regex="a")
        answering = b.start(r)
        await until(lambda: r.tries == 1 and any(b.decode.running(r.id)))
        b.decode.fail(r.id, "no luck")
        b.decode.release()
        assert (await asyncio.wait_for(answering, 30))[1] == "length"
        assert r.tries == 2


@pytest.mark.parametrize("sampling", [{"regex": "a"}, {"frequency_penalty": 0.5}, {"stop_regex": ["a"]}])
async def test_what_cannot_migrate_begins_anew_where_nobody_has_heard_of_it(sampling: dict[str, Any]) -> None:
    async with _two_decodes() as b:  # type: ignore[attr-defined]
        r, reader = request(max_tokens=60, text=Plain(stop_after=40), **sampling), Reader(collects=True)
        answering = asyncio.create_task(b.coordinator.run(r, reader))
        await until(lambda: len(r.emitted_ids) >= 10)
        b.servers[_serving(b, r.id)].close()
        await asyncio.wait_for(answering, 30)
        assert (reader.text, reader.finish_reason) == ("x" * 40, "stop")
        assert r.emitted_ids == reader.token_ids == [*range(3, 43)], "its first token came again, and all after it"
        assert r.usage["completion_tokens"] == 40
        assert [lost.after_tokens >= 10 for lost in r.facts.lost_tries] == [True]
        await b.settle()


def test_the_fewest_tokens_are_those_that_are_still_to_come() -> None:
    r = request(max_tokens=20, min_new_tokens=8, stop_token_ids=[5], logit_bias={"5": 1.0})
    assert r.can_migrate, "each step of these stands for itself"
    assert r.sampling_of_a_leg(1)["min_new_tokens"] == 1, "a prefill makes one, and SGLang takes no more than that"
    assert r.sampling_of_a_leg(20)["min_new_tokens"] == 8
    r.emitted_ids += [1, 2, 3]
    assert r.sampling_of_a_leg(17)["min_new_tokens"] == 5
    r.emitted_ids += [1] * 6
    assert r.sampling_of_a_leg(11)["min_new_tokens"] == 0


async def test_a_request_longer_than_migration_tokens_max_stays() -> None:
    async with bench(limits=Limits(migration_tokens_max=5), decode=_positions()) as b:
        r = request(max_tokens=1000)
        answering = b.start(r)
        await until(lambda: len(r.emitted_ids) > 3)
        b.decode.fail(r.id, "no luck")
        with pytest.raises(LegLost):
            await asyncio.wait_for(answering, 30)


async def test_no_pair_comes_back_for_a_stream() -> None:
    async with bench(limits=Limits(no_pair_s=0.2), decode=_positions()) as b:
        r = request(max_tokens=1000)
        answering = b.start(r)
        await until(lambda: len(r.emitted_ids) > 3)
        await b.change("decode-0", state=State.DEAD)
        await until(lambda: r.phase is Phase.MIGRATING)
        with pytest.raises(NoReadyPair):
            await asyncio.wait_for(answering, 30)
        assert r.phase is Phase.FAILED


async def test_cancelled_while_it_migrates() -> None:
    async with bench(limits=Limits(), decode=_positions()) as b:
        r = request(max_tokens=1000)
        answering = b.start(r)
        await until(lambda: len(r.emitted_ids) > 3)
        await b.change("decode-0", state=State.DEAD)
        await until(lambda: r.phase is Phase.MIGRATING)
        assert b.coordinator.cancel(r.id)
        with pytest.raises(Cancelled):
            await asyncio.wait_for(answering, 30)
        assert r.phase is Phase.CANCELLED
        await b.settle()


async def test_a_client_that_leaves_while_it_migrates_leaves_nothing() -> None:
    async with bench(limits=Limits(), decode=_positions()) as b:
        r = request(max_tokens=1000)
        answering = b.start(r)
        await until(lambda: len(r.emitted_ids) > 3)
        await b.change("decode-0", state=State.DEAD)
        await until(lambda: r.phase is Phase.MIGRATING)
        answering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answering
        await b.settle()


async def test_an_engine_that_drains_takes_nothing_new_and_keeps_what_it_has() -> None:
    async with _two_decodes() as b:  # type: ignore[attr-defined]
        r = request(max_tokens=50)
        answering = b.start(r)
        await until(lambda: r.emitted_ids)
        drained = _serving(b, r.id)
        other = "decode-1" if drained == "decode-0" else "decode-0"
        await b.change(drained, state=State.DRAINING)
        assert await b.answer(request(max_tokens=2)) == ("xx", "length")
        assert len(b.engines[drained].legs) == 1
        assert len(b.engines[other].legs) == 1
        assert await asyncio.wait_for(answering, 30) == ("x" * 50, "length")
        assert r.tries == 1


async def test_an_engine_that_has_drained_long_enough_is_left() -> None:
    async with _two_decodes() as b:  # type: ignore[attr-defined]
        r, stays = request(max_tokens=80), request(max_tokens=80, frequency_penalty=1.0)
        answering = [b.start(r), b.start(stays)]
        await until(lambda: r.emitted_ids and stays.emitted_ids)
        for name in {_serving(b, r.id), _serving(b, stays.id)}:
            await b.change(name, state=State.DRAINING)
        engines = {_serving(b, r.id), _serving(b, stays.id)}
        assert len(engines) == 2, "two engines share two streams"
        await b.change(_serving(b, stays.id), evict=True)
        other = _serving(b, r.id)
        await asyncio.sleep(0.05)
        assert stays.tries == 1
        await b.change(_serving(b, stays.id), state=State.READY, evict=False)
        await b.change(other, evict=True)
        assert await asyncio.gather(*answering) == [("x" * 80, "length")] * 2
        assert r.tries == 2
        assert r.emitted_ids == [*range(3, 83)]


async def test_a_stream_that_stalls_moves_on_at_its_deadline() -> None:
    async with bench(limits=Limits(next_token_s=0.2), decode_0=_positions(), decode_1=_positions()) as b:
        r = request(max_tokens=40)
        answering = b.start(r)
        await until(lambda: len(r.emitted_ids) > 3)
        b.engines[_serving(b, r.id)].freeze()
        assert await asyncio.wait_for(answering, 30) == ("x" * 40, "length")
        assert r.emitted_ids == [*range(3, 43)]


async def test_a_deadline_with_nowhere_else_to_go_is_told() -> None:
    limits = replace(Limits(), bootstrap_s=0.1, retry_limit=1)
    async with bench(limits=limits, decode=StubEngine(hold=True)) as b:
        with pytest.raises(DeadlineExceeded, match=r"deadlines\.bootstrap_s"):
            await b.answer(request())
        assert len(b.decode.legs) == 2
        await b.settle()
