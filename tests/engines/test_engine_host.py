"""Beside real schedulers, without Ray: stages as they come, exact aborts, KV that is free afterwards, health."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hosts import ADDRESS, BLOCK_TOKENS, BUSY_S, Host, LegLog, NodeAgent, agent, fresh_prompt, leg, wait_until

from benchmarks.random_requests import random_bodies
from disagg.errors import BadRequest, LegLost
from disagg.plane import messages as m
from disagg.plane.client import PlaneClient
from disagg.roles import Role
from disagg.sampling import sampling_of
from transfer.canary import CanaryFailed, RankEndpoint, probe_pair

pytestmark = pytest.mark.alone

FREE_S = BUSY_S  # from a leg's end to the engine's own word that its KV is free: under a second, on an idle machine
HANG_S = 5.0  # a loop that does not come round for so long is taken for hung, unless it computes
FOUND_S = 30.0  # on a busy machine; some 3 s on an idle one
LONG_PROMPT = 3000  # tokens; over 20 s of prefill in chunks of 256
PAIR = {"page_size": 16, "chunked_prefill_size": 256}


@pytest.fixture(scope="module")
def zygote() -> Iterator[NodeAgent]:
    with agent() as made:
        yield made


@pytest.fixture(scope="module")
def hosts(zygote: NodeAgent) -> Iterator[tuple[Host, Host]]:
    with (
        contextlib.closing(Host(zygote, Role.PREFILL, **PAIR)) as prefill,
        contextlib.closing(Host(zygote, Role.DECODE, page_size=16)) as decode,
    ):
        yield prefill.wait_until_ready(), decode.wait_until_ready()


@pytest.fixture(scope="module")
def large_chunks(zygote: NodeAgent) -> Iterator[Host]:
    """An aggregated engine that computes a whole prompt in one chunk."""
    with contextlib.closing(Host(zygote, Role.AGGREGATED, page_size=16, chunked_prefill_size=8192)) as host:
        yield host.wait_until_ready()


@dataclass
class Pair:
    prefill: PlaneClient
    decode: PlaneClient
    bootstrap_port: int

    def legs(self, prompt_ids: list[int], new_tokens: int, **sampling: Any) -> tuple[LegLog, LegLog]:
        bootstrap = m.Bootstrap(ADDRESS, self.bootstrap_port, random.getrandbits(62) + 1, 0)
        return (
            leg(self.prefill, prompt_ids, 1, bootstrap, **sampling),
            leg(self.decode, prompt_ids, new_tokens, bootstrap, **sampling),
        )

    async def assert_free(self) -> None:
        """Both engines say that nothing is held and nothing waits."""

        async def is_free() -> bool:
            loads = [(await client.loads())[0] for client in (self.prefill, self.decode)]
            return all((load.kv_tokens_used, load.running, load.waiting) == (0, 0, 0) for load in loads)

        await wait_until(is_free, FREE_S)


@pytest.fixture
async def pair(hosts: tuple[Host, Host]) -> AsyncIterator[Pair]:
    """Warm: both schedulers have made a step, and met."""
    prefill, decode = hosts
    async with prefill.client() as to_prefill, decode.client() as to_decode:
        met = Pair(to_prefill, to_decode, prefill.bootstrap_port)
        _, answer = met.legs(fresh_prompt(20), 2)
        assert (await answer.until_end()).reason == "length"
        yield met
        await met.assert_free()


def _abort(*legs: LegLog) -> None:
    for each in legs:
        each.abort()


def test_facts_are_the_schedulers_own(hosts: tuple[Host, Host]) -> None:
    for host in hosts:
        assert (host.facts["requests_max"], host.facts["page_size"], host.facts["kv_tokens"]) == (16, 16, 16384)


async def test_stages_come_in_order_on_both_legs(pair: Pair) -> None:
    prefill, decode = pair.legs(fresh_prompt(300), 4)
    assert (await decode.until_end()).reason == (await prefill.until_end()).reason == "length"
    assert prefill.stages == ["bootstrapping", "prefilling", "transferring"]
    assert prefill.told_cached_tokens == 0
    assert decode.stages == ["bootstrapping", "transferring"]
    assert len(decode.token_ids) == 4


async def test_a_stage_is_told_while_it_lasts(pair: Pair) -> None:
    prefill, decode = pair.legs(fresh_prompt(LONG_PROMPT), 4)
    await prefill.until(lambda p: "prefilling" in p.stages)
    assert "transferring" not in prefill.stages
    assert not prefill.end
    _abort(prefill, decode)
    await prefill.until_end()
    await decode.until_end()


async def test_abort_during_a_long_prefill_ends_it_within_its_chunk(pair: Pair) -> None:
    prefill, decode = pair.legs(fresh_prompt(LONG_PROMPT), 4)
    await prefill.until(lambda p: "prefilling" in p.stages)

    async def has_computed() -> bool:
        return (await pair.prefill.loads())[0].kv_tokens_used > 0

    await wait_until(has_computed, FREE_S)
    assert prefill.end is None, "too short to prove anything"
    _abort(prefill, decode)
    assert (await decode.until_end()).reason == "abort"
    assert (await prefill.until_end()).reason == "abort"
    await pair.assert_free()


async def test_abort_right_after_submit_leaves_nothing(pair: Pair) -> None:
    for pause_s in (None, 0.0, 0.001, 0.005):  # before and after SGLang has dispatched it
        prefill, decode = pair.legs(fresh_prompt(LONG_PROMPT), 4)
        if pause_s is not None:
            await asyncio.sleep(pause_s)
        _abort(prefill, decode)
        assert (await decode.until_end()).reason == (await prefill.until_end()).reason == "abort"
        await pair.assert_free()


async def test_abort_in_the_middle_of_decode(pair: Pair) -> None:
    prefill, decode = pair.legs(fresh_prompt(40), 3000)
    await decode.until(lambda d: len(d.token_ids) >= 5)
    assert (await pair.decode.loads())[0].kv_tokens_used > 0
    _abort(prefill, decode)
    assert (await decode.until_end()).reason == "abort"
    assert (await prefill.until_end()).reason == "length", "it had ended"
    assert len(decode.token_ids) < 3000
    await pair.assert_free()


async def test_abort_during_a_slow_transfer(pair: Pair, zygote: NodeAgent) -> None:
    zygote.slow_transfer.write_text("4")
    prefill, decode = pair.legs(fresh_prompt(100), 4)
    await prefill.until(lambda p: "transferring" in p.stages)
    zygote.slow_transfer.unlink()
    assert not decode.token_ids
    _abort(prefill, decode)
    assert (await decode.until_end()).reason == (await prefill.until_end()).reason == "abort"
    await pair.assert_free()
    await asyncio.sleep(4)  # the sender wakes and must find that there is nothing to send
    _, answer = pair.legs(fresh_prompt(20), 2)
    assert (await answer.until_end()).reason == "length"


async def test_a_canary_beside_others_tells_what_became_of_its_kv(pair: Pair, zygote: NodeAgent) -> None:
    """It comes; it does not come; and where its prompt waits behind another one nothing is known of it."""
    port = pair.bootstrap_port
    prefill = RankEndpoint("prefill-0#1", 0, 1, f"{ADDRESS}:{port}", pair.prefill)
    decode = RankEndpoint("decode-0#1", 0, 1, "", pair.decode)

    async def probe(limit_s: float, transfer_s: float) -> None:
        await probe_pair(prefill, decode, random.getrandbits(62) + 1, limit_s, transfer_s)

    _, stream = pair.legs(fresh_prompt(40), 3000)
    await stream.until(lambda d: d.token_ids)
    await probe(BUSY_S, BUSY_S)
    zygote.slow_transfer.write_text("held")
    with pytest.raises(CanaryFailed, match=r"no end within 0\.5 s") as lost:
        await probe(BUSY_S, 0.5)
    zygote.slow_transfer.unlink()
    assert not lost.value.was_unread
    _abort(stream)
    await stream.until_end()
    await pair.assert_free()
    long = pair.legs(fresh_prompt(LONG_PROMPT), 4)
    await long[0].until(lambda p: "prefilling" in p.stages)
    with pytest.raises(CanaryFailed) as late:
        await probe(0.5, 0.5)
    assert late.value.was_unread
    _abort(*long)
    for each in long:
        await each.until_end()


async def test_a_prompt_cancelled_early_costs_little(pair: Pair, hosts: tuple[Host, Host]) -> None:
    def cpu_s() -> float:
        times = hosts[0].scheduler.cpu_times()
        return float(times.user + times.system)

    before = cpu_s()
    prefill, decode = pair.legs(fresh_prompt(2000), 1)
    await prefill.until_end(60)
    await decode.until_end()
    whole_s, before = cpu_s() - before, cpu_s()
    prefill, decode = pair.legs(fresh_prompt(2000), 1)
    await prefill.until(lambda p: "prefilling" in p.stages)
    _abort(prefill, decode)
    await prefill.until_end()
    await decode.until_end()
    await pair.assert_free()
    assert cpu_s() - before < 0.2 * whole_s


async def _sick(client: PlaneClient) -> str:
    return (await client.health())[0].sick


async def test_a_stopped_scheduler_is_found_and_well_again_when_it_goes_on(
    pair: Pair, hosts: tuple[Host, Host]
) -> None:
    prefill, decode = pair.legs(fresh_prompt(40), 60)
    await decode.until(lambda d: len(d.token_ids) >= 3)
    assert not await _sick(pair.decode)
    hosts[1].scheduler.send_signal(signal.SIGSTOP)
    try:
        await wait_until(lambda: _sick(pair.decode), FOUND_S)
        assert "stopped" in await _sick(pair.decode)
        assert not await _sick(pair.prefill)
    finally:
        hosts[1].scheduler.send_signal(signal.SIGCONT)

    async def is_well() -> bool:
        return not await _sick(pair.decode)

    await wait_until(is_well, 30)
    assert (await decode.until_end()).reason == "length"
    await prefill.until_end()


@pytest.mark.parametrize("busy", [True, False])
async def test_a_scheduler_that_sleeps_is_found(
    pair: Pair, hosts: tuple[Host, Host], zygote: NodeAgent, busy: bool
) -> None:
    if busy:
        prefill, decode = pair.legs(fresh_prompt(40), 30)
        await decode.until(lambda d: len(d.token_ids) >= 3)
    zygote.hang.write_text(f"6 {hosts[1].name}")
    await wait_until(lambda: _sick(pair.decode), FOUND_S)
    assert "computes nothing" in await _sick(pair.decode)
    assert not await _sick(pair.prefill)

    async def is_well() -> bool:
        return not await _sick(pair.decode)

    await wait_until(is_well, 30)
    if busy:
        assert (await decode.until_end()).reason == "length"
        await prefill.until_end()


async def test_one_long_chunk_is_not_taken_for_a_hang(large_chunks: Host) -> None:
    async with large_chunks.client() as client:
        await leg(client, fresh_prompt(100), 2).until_end()
        oldest_s = 0.0
        for tokens in (LONG_PROMPT, 5000, 8000):  # more on a quicker machine
            long = leg(client, fresh_prompt(tokens), 1)
            while not long.end:
                health = (await client.health())[0]
                assert not health.sick
                oldest_s = max(oldest_s, health.beat_age_s)
                await asyncio.sleep(0.2)
            assert long.end.reason == "length"
            assert long.stages == ["prefilling"]
            if oldest_s > HANG_S:
                return
        pytest.skip(f"this machine reads 8000 tokens in {oldest_s:.1f} s: no chunk is as long as a hang")


async def test_a_killed_scheduler_is_seen(large_chunks: Host) -> None:
    """SGLang's host follows its scheduler, so either may be what a frontend sees."""
    async with large_chunks.client() as client:
        large_chunks.scheduler.kill()

        async def is_seen() -> bool:
            with contextlib.suppress(LegLost):
                return bool(await _sick(client))
            return True

        await wait_until(is_seen, FOUND_S)


POISON = {"temperature": 1.0, "repetition_penalty": 1e-40, "sampling_seed": 7}  # inf in float32, then NaN in a softmax


async def test_values_that_become_infinite_end_their_request_alone(pair: Pair) -> None:
    """No frontend would let them through: this is what stands behind it."""
    prompt = fresh_prompt(40)
    _, undisturbed = pair.legs(prompt, 16)
    await undisturbed.until_end()
    _, bystander = pair.legs(prompt, 16)
    await bystander.until(lambda log: log.token_ids)
    for more in (POISON, {**POISON, "top_p": 0.9}, {"temperature": 1e-5, "repetition_penalty": 1e-34}):
        _, decode = pair.legs(fresh_prompt(20), 20, **more)
        end = await decode.until_end()  # its second token: penalties count what was put out
        assert (end.reason, len(decode.token_ids)) == (m.NOT_A_NUMBER, 1)
    assert (await bystander.until_end()).reason == "length"
    assert bystander.token_ids == undisturbed.token_ids


async def test_a_nan_of_the_model_ends_its_request_alone_in_prefill(pair: Pair, zygote: NodeAgent) -> None:
    zygote.nan.write_text("1.75")
    try:
        prefill, decode = pair.legs(fresh_prompt(20), 20, temperature=1.75)
        beside, bystander = pair.legs(fresh_prompt(30), 4)
        end = await prefill.until_end()
    finally:
        zygote.nan.unlink()
    _abort(decode)  # as a coordinator does
    await decode.until_end()
    assert (end.reason, decode.token_ids) == (m.NOT_A_NUMBER, [])
    assert ((await beside.until_end()).reason, (await bystander.until_end()).reason) == ("length", "length")


async def test_a_nan_of_the_model_ends_its_request_alone_in_decode(pair: Pair, zygote: NodeAgent) -> None:
    prompt = fresh_prompt(40)
    _, undisturbed = pair.legs(prompt, 16)
    await undisturbed.until_end()
    _, bystander = pair.legs(prompt, 16)
    _, sick = pair.legs(fresh_prompt(20), 500, temperature=1.75)
    await bystander.until(lambda log: log.token_ids)
    await sick.until(lambda log: len(log.token_ids) > 2, BUSY_S)
    zygote.nan.write_text("1.75")
    try:
        end = await sick.until_end()
    finally:
        zygote.nan.unlink()
    assert end.reason == m.NOT_A_NUMBER
    assert "NaN" in end.detail
    assert (await bystander.until_end()).reason == "length"
    assert bystander.token_ids == undisturbed.token_ids
    _, after = pair.legs(prompt, 16)  # its pages and the prefix cache hold nothing of it
    await after.until_end()
    assert after.token_ids == undisturbed.token_ids


async def test_random_sampling_parameters_leave_both_engines_alive_and_seeds_give_the_same_again(pair: Pair) -> None:
    """The bodies of benchmarks/random_requests.py, past the door that would refuse some; for any SGLang release."""
    bodies = list(random_bodies(3, 30, "any", tokens_max=3))

    async def answer(body: dict[str, Any]) -> tuple[str, list[int]]:
        try:
            sampling = sampling_of(body, {})
        except BadRequest:
            return "refused", []
        prefill, decode = pair.legs(body["prompt"], body["max_tokens"], **sampling)
        if (await prefill.until_end()).reason not in m.WELL:
            _abort(decode)
        return (await decode.until_end()).reason, decode.token_ids

    first, again = [await asyncio.gather(*map(answer, bodies)) for _ in range(2)]
    assert {reason for reason, _ in first} <= {"length", "stop", "refused", "abort", m.NOT_A_NUMBER}
    seeded = [index for index, body in enumerate(bodies) if body.get("seed") is not None]
    assert [first[index] for index in seeded] == [again[index] for index in seeded]


async def test_what_it_tells_of_its_prefix_cache_is_what_its_cache_then_gives(
    pair: Pair, hosts: tuple[Host, Host]
) -> None:
    """Whole blocks of 64 tokens, of pages of 16. A decode engine has no prefix cache, and tells of none."""
    prefill, decode = hosts
    assert await pair.prefill.flush_cache(BUSY_S) == ""
    first = fresh_prompt(300)
    fork, other = first[:200] + fresh_prompt(150), fresh_prompt(100)
    async with prefill.cache() as cache, decode.cache() as none:
        assert cache.endpoint.tells_cache
        for prompt, tokens, after in ((first, 0, 256), (fork, 192, 320), (first, 256, 256), (other, 0, 64)):
            assert cache.tokens(prompt) == tokens
            read, answer = pair.legs(prompt, 2)
            await answer.until_end()
            cached = (await read.until_end()).cached_tokens
            assert tokens <= cached < tokens + BLOCK_TOKENS

            async def is_told(prompt: list[int] = prompt, after: int = after) -> bool:
                return cache.tokens(prompt) == after

            await wait_until(is_told, BUSY_S)
        async with prefill.cache() as later:  # another frontend, which comes now
            assert later.index.blocks_of(0) == cache.index.blocks_of(0) == 7
        await pair.assert_free()
        assert await pair.prefill.flush_cache(BUSY_S) == ""

        async def is_empty() -> bool:
            return cache.index.blocks_of(0) == 0

        await wait_until(is_empty, BUSY_S)
        assert (cache.feed.gaps, none.endpoint.tells_cache) == ({}, False)
