"""Priorities, keys that share, requests too big for the room there is, and first tokens that would come too late."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests share bench.py; they are not a package
sys.path.insert(0, str(Path(__file__).parents[1] / "routing"))

from bench import Plain, request
from engines import make_router, split

from disagg.coordinator.admission import Admission
from disagg.coordinator.request import Blame, Request
from disagg.coordinator.wishes import Wishes
from disagg.errors import Overloaded
from disagg.plane.ledger import Capacity
from disagg.roles import Role
from disagg.routing.endpoints import Pair
from disagg.routing.load import Endpoints
from disagg.routing.observations import Read
from disagg.routing.policies.predicted import Predicted
from disagg.routing.reservation import Reservation
from disagg.routing.router import Router
from disagg.routing.view import Choice, Forecast, RoutingView

ROOM = Capacity(64, 100_000, 1)


def asked(prompt_tokens: int, *, owner: bytes = b"", max_tokens: int = 10, **wishes: Any) -> Request:
    made = request()
    made = Request(made.id, list(range(prompt_tokens)), {}, max_tokens, Plain(), time.monotonic())
    made.owner, made.wishes, made.waiting_since_s = owner, Wishes(**wishes), made.received_at_s
    return made


class Bench:
    """An Admission before one pair that reads one prompt at a time: `read` says that its prompt has been read."""

    def __init__(self, router: Router, read_ahead_tokens: int | None = 1) -> None:
        self.router = router
        self.admission = Admission(
            router,
            queue_max=100,
            queue_s=30,
            no_pair_s=30,
            now_s=time.monotonic,
            read_ahead_tokens=read_ahead_tokens,
        )
        router.endpoints.on_change = self.admission.serve
        self.order: list[str] = []
        self.held: list[Reservation] = []
        self.tasks: list[asyncio.Task[None]] = []

    def send(self, name: str, made: Request) -> None:
        async def wait() -> None:
            self.held.append(await self.admission.reserve(made, made.received_at_s + 60))
            self.order.append(name)

        self.tasks.append(asyncio.create_task(wait()))

    async def turns(self) -> None:
        for _ in range(6):
            await asyncio.sleep(0)

    async def read_all(self) -> None:
        await self.turns()
        while self.held:
            self.held.pop(0).release()
            await self.turns()
        await asyncio.gather(*self.tasks)


def pair(capacity: Capacity = ROOM) -> Bench:
    return Bench(make_router(*split(1, 1, capacity=capacity), policy=Predicted()))


async def test_a_prompt_waits_until_those_before_it_are_read() -> None:
    bench = pair()
    for name in "abc":
        bench.send(name, asked(100))
    await bench.turns()
    assert bench.order == ["a"]
    assert bench.router.endpoints.places_taken == 2
    bench.held[0].has_read()  # it decodes on
    await bench.turns()
    assert bench.order == ["a", "b"]
    await bench.read_all()
    assert bench.order == ["a", "b", "c"]


@pytest.mark.parametrize(("chunk_tokens", "sent"), [(0, 3), (1000, 3), (4000, 4), (8000, 8)])
async def test_unless_said_otherwise_a_rank_has_two_chunks_to_read(chunk_tokens: int, sent: int) -> None:
    """Prompts of 2,000: with fewer its next chunk would begin half empty. At least 4,096 tokens."""
    prefill, decode = split(1, 1, capacity=ROOM)
    prefill.endpoints[0].chunk_tokens = chunk_tokens
    bench = Bench(make_router(prefill, decode, policy=Predicted()), read_ahead_tokens=None)
    for number in range(12):
        bench.send(str(number), asked(2000))
    await bench.turns()
    assert len(bench.order) == sent
    await bench.read_all()


async def test_a_higher_priority_is_admitted_next() -> None:
    bench = pair()
    for name in "abc":
        bench.send(name, asked(100))
    await bench.turns()
    bench.send("high", asked(5000, priority=10))
    await bench.read_all()
    assert bench.order == ["a", "high", "b", "c"]


async def test_a_key_that_floods_does_not_hold_up_another() -> None:
    bench = pair()
    for number in range(20):
        bench.send(f"flood-{number}", asked(100, owner=b"flood"))
    await bench.turns()
    bench.send("other", asked(100, owner=b"other"))
    await bench.read_all()
    assert bench.order.index("other") <= 2


async def test_a_big_request_lets_small_ones_pass_but_not_for_ever() -> None:
    """It needs all the KV there is, and one request runs already."""
    bench = pair(Capacity(64, 1000, 1))
    bench.send("runs", asked(100))
    await bench.turns()
    bench.held[0].has_read()
    bench.send("big", asked(900))
    for number in range(12):
        bench.send(f"small-{number}", asked(100))
    for _ in range(12):
        await bench.turns()
        for reservation in bench.held[1:]:
            reservation.has_read()
        if len(bench.held) > 3:  # the first one runs on and on
            bench.held.pop(1).release()
    passed = len(bench.order)
    assert 3 <= passed < 12
    assert "big" not in bench.order
    await bench.read_all()
    assert bench.order.index("big") == passed


async def test_small_requests_pass_a_big_one_though_all_may_fill_the_context() -> None:
    """As clients do that say no max_tokens. An answer is set 512 tokens aside at first."""
    bench = pair(Capacity(64, 20_000, 1))
    bench.send("runs", asked(10_000))
    await bench.turns()
    bench.held[0].has_read()
    bench.send("big", asked(15_000, max_tokens=32_768 - 15_000))
    for number in range(12):
        bench.send(f"small-{number}", asked(100, max_tokens=32_768 - 100))
    for _ in range(12):
        await bench.turns()
        for reservation in bench.held[1:]:
            reservation.has_read()
    assert bench.order == ["runs", *(f"small-{number}" for number in range(12))]
    await bench.read_all()
    assert bench.order[-1] == "big"


async def test_a_first_token_that_would_come_too_late_is_refused_at_once_and_says_what_would_do() -> None:
    bench = pair()
    for _ in range(4):
        bench.send("before", asked(20_000))
    await bench.turns()
    began_s = time.monotonic()
    with pytest.raises(Overloaded, match=r"first token would come after .* retry later, or allow \d+ ms"):
        await bench.admission.reserve(asked(100, ttft_s=0.05), began_s + 60)
    assert time.monotonic() - began_s < 0.04
    bench.send("can wait", asked(100, ttft_s=60.0))
    await bench.read_all()
    assert bench.order[-1] == "can wait"


class Patient:
    """Waits for one rank, as that spares the others something; another one is free."""

    def choose(self, request: RoutingView, endpoints: Endpoints) -> Choice | None:
        waits, free = endpoints.of(Role.PREFILL)
        reader, wait_ms = (free, 0.0) if request.hurries else (waits, 900.0)
        pair = Pair(reader, next(iter(endpoints.of(Role.DECODE))))
        return Choice(pair, Forecast(wait_ms=wait_ms, read_ms=100.0, transfer_ms=0.0, itl_ms=1.0))


async def test_one_that_would_be_too_late_there_goes_to_where_it_is_read_soonest() -> None:
    bench = Bench(make_router(*split(2, 1, capacity=ROOM), policy=Patient()))
    places = []
    for made in (asked(100), asked(100, ttft_s=5.0), asked(100, ttft_s=0.5)):
        reservation = await bench.admission.reserve(made, time.monotonic() + 60)
        places.append(reservation.pair.reader.engine.id)
        reservation.release()
    assert places == ["prefill-0", "prefill-0", "prefill-1"]
    with pytest.raises(Overloaded, match=r"would come after 0\.1"):
        await bench.admission.reserve(asked(100, ttft_s=0.05), time.monotonic() + 60)


async def test_where_nothing_is_foreseen_the_wait_ends_when_the_first_token_is_of_no_use() -> None:
    router = make_router(*split(1, 1, capacity=replace(ROOM, requests=1)))
    bench = Bench(router)
    bench.send("runs", asked(100))
    await bench.turns()
    with pytest.raises(Overloaded, match="of no use"):
        await bench.admission.reserve(asked(100, ttft_s=0.05), time.monotonic() + 60)
    await bench.read_all()


async def test_tokens_that_would_come_too_slowly_are_refused() -> None:
    bench = pair()
    with pytest.raises(Overloaded, match="a token would take"):
        await bench.admission.reserve(asked(100, tpot_s=1e-6), time.monotonic() + 60)


async def test_what_was_learnt_wrongly_does_not_refuse_for_ever() -> None:
    """All clients ask for a first token in time, and the first prompt after the start took a minute. Nothing else runs
    from which it could be learnt that prompts are quick."""
    policy, now_s = Predicted(), time.monotonic()
    router = make_router(*split(1, 1, capacity=ROOM), policy=policy)
    admission = Admission(router, queue_max=100, queue_s=30, no_pair_s=30, now_s=lambda: now_s)
    reader = next(iter(router.endpoints.of(Role.PREFILL))).id
    router.observe(Read(reader, 1, 1000, 5e5, 60.0, 60.0))
    refused = []
    for second in range(60):
        now_s += 1.01
        for _ in range(5):
            made = asked(1000, ttft_s=0.2)
            made.received_at_s = made.waiting_since_s = now_s
            try:
                reservation = await admission.reserve(made, now_s + 60)
            except Overloaded:
                refused.append(second)
            else:
                router.observe(Read(reader, 1, 1000, 5e5, 0.06, 1.0))
                reservation.release()
    assert refused[:9] == [0, 0, 0, 0, 0, 1, 1, 1, 1]  # one in a second goes to see
    assert 1 < refused[-1] < 30


async def test_the_last_one_that_was_bound_leaves_nothing_behind() -> None:
    bench = pair()
    bench.send("runs", asked(100))
    bench.send("gone", asked(50_000))
    await bench.turns()
    bench.tasks.pop().cancel()
    await bench.read_all()
    assert next(iter(bench.router.endpoints.of(Role.PREFILL))).queued_tokens == 0


async def test_a_suspect_that_could_not_be_answered_in_time_holds_nobody_up() -> None:
    bench = pair(replace(ROOM, requests=1))
    bench.router.connections.is_lost = lambda _life: True  # type: ignore[method-assign]
    bench.send("runs", asked(100))
    await bench.turns()
    suspect = asked(1000, tpot_s=1e-6)
    suspect.tries, suspect.blames = 1, [Blame("decode-9#1", Role.DECODE, False)]
    waiting = asyncio.create_task(bench.admission.reserve(suspect, time.monotonic() + 60))
    bench.send("other", asked(10))
    await bench.turns()
    await bench.read_all()
    with pytest.raises(Overloaded, match="a token would take"):
        await waiting


async def test_those_who_wait_for_a_busy_engine_hide_nobody_who_could_go_elsewhere() -> None:
    bench = Bench(make_router(*split(2, 2, capacity=ROOM), policy=Predicted()))
    bench.send("first", asked(100))
    await bench.turns()
    for _ in range(80):
        made = asked(100)
        made.prefix_on = bench.held[0].pair.reader.id  # another sample of its prompt
        bench.send("sample", made)
    bench.send("other", asked(100))
    async with asyncio.timeout(5):
        while "other" not in bench.order:
            await asyncio.sleep(0.01)
    assert bench.order == ["first", "other"]
    await bench.read_all()


async def test_a_full_queue_refuses_before_it_hashes_a_prompt() -> None:
    bench = pair()
    bench.admission._queue_max = 1
    for name in "ab":
        bench.send(name, asked(100))
    await bench.turns()
    late = asked(100_000)
    with pytest.raises(Overloaded, match="wait already"):
        await bench.admission.reserve(late, time.monotonic() + 60)
    assert late.path_tokens == -1
    await bench.read_all()


async def test_many_suspects_cost_a_change_no_more_than_a_few() -> None:
    """None of them finds an idle engine where the first of them finds none."""
    bench = pair()
    bench.router.connections.is_lost = lambda _life: True  # type: ignore[method-assign]
    bench.send("runs", asked(100))
    await bench.turns()
    considered = 0
    consider = bench.router.consider

    def counts(view: RoutingView) -> Choice | None:
        nonlocal considered
        considered += 1
        return consider(view)

    bench.router.consider = counts  # type: ignore[method-assign]
    for number in range(200):
        suspect = asked(100 + number % 3)
        suspect.tries, suspect.blames = 1, [Blame("decode-9#1", Role.DECODE, False)]
        bench.send(f"suspect-{number}", suspect)
    await bench.turns()
    considered = 0
    bench.admission.serve()
    await bench.turns()
    assert considered <= 3
    await bench.read_all()
    assert len(bench.order) == 201


def test_what_a_client_expects_of_its_answer_is_what_may_still_come() -> None:
    admission, found = pair().admission, []
    for says, emitted in ((0, 0), (2**31 - 1, 0), (7, 0), (7, 3), (7, 8)):
        made = asked(5, output_tokens=says)
        made.emitted_ids = [1] * emitted
        found.append(admission._view(made, 0.0).expected_tokens)
    assert found == [0, 10, 7, 4, 0]
