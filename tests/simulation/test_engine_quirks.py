"""What SGLang does when things go wrong, row by row: the simulated engine does the same.

The rows are those of engines-here.md ("What failures look like") and of field-notes B.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from disagg.adapters import Adapter
from disagg.kv_events.events import Event, Removed, Stored
from disagg.simulated_engine.tokens import EOS, answer
from tests.simulation.pair import CHUNK_S, PROMPT, TIMEOUT_S, SimulatedPair, on_a_pair

WHOLE_PREFILL_S = 8 * CHUNK_S


def now_s() -> float:
    return asyncio.get_running_loop().time()


def test_a_pair_answers_and_holds_nothing_afterwards() -> None:
    async def scenario(pair: SimulatedPair) -> None:
        prefill, decode = pair.both(max_tokens=40)
        await pair.over(prefill, decode)
        assert (prefill.end, decode.end) == (("length", ""), ("length", ""))
        assert prefill.stages == ["bootstrapping", "prefilling", "transferring"]
        assert decode.ids == answer(PROMPT, 40, ignore_eos=True)
        assert prefill.ids == decode.ids[:1]
        stats = prefill.stats
        assert stats["forward_start"] < stats["forward_end"] < stats["transfer_end"]
        assert stats["kv_bytes"] == len(PROMPT) * 24_576
        assert pair.holds_nothing()

    on_a_pair(scenario)


def test_whoever_goes_on_says_the_same_tokens() -> None:
    async def scenario(pair: SimulatedPair) -> None:
        _, whole = pair.both(max_tokens=30)
        await pair.over(whole)
        _, rest = pair.both(max_tokens=18, prompt=PROMPT + whole.ids[:12], room=9)
        await pair.over(rest)
        assert whole.ids[:12] + rest.ids == whole.ids

    on_a_pair(scenario, tokens_per_step=5)


def test_an_answer_may_end_early_and_always_at_the_same_token() -> None:
    async def scenario(pair: SimulatedPair) -> None:
        for first in range(20):
            prompt = [first, *PROMPT[:40]]
            _, decode = pair.both(max_tokens=300, prompt=prompt, ignore_eos=False, room=first + 1)
            await pair.over(decode)
            assert decode.ids == answer(prompt, 300)
            assert decode.end == ("stop" if decode.ids[-1] == EOS else "length", "")

    on_a_pair(scenario)


def test_prefill_aborted_in_prefill_ends_within_its_chunk_and_decode_is_not_told() -> None:
    async def scenario(pair: SimulatedPair) -> None:
        prefill, decode = pair.both()
        await asyncio.sleep(2.5 * CHUNK_S)
        aborted_at_s = now_s()
        pair.abort(prefill)
        await pair.over(prefill)
        assert prefill.end is not None
        assert prefill.end[0] == "abort"
        assert prefill.ended_at_s - aborted_at_s < CHUNK_S
        await pair.over(decode)
        assert decode.end is not None
        assert "KVPoll.WaitingForInput" in decode.end[1]
        assert decode.ended_at_s == pytest.approx(TIMEOUT_S, abs=0.1)
        assert pair.holds_nothing()

    on_a_pair(scenario)


def test_decode_aborted_in_prefill_leaves_prefill_computing_the_whole_prompt() -> None:
    async def scenario(pair: SimulatedPair) -> None:
        prefill, decode = pair.both()
        await asyncio.sleep(2.5 * CHUNK_S)
        pair.abort(decode)
        await pair.over(decode, limit_s=0.1)
        assert decode.end is not None
        assert decode.end[0] == "abort"
        await pair.over(prefill)
        assert prefill.end == ("error", "Aborted by decode-side abort notification.")
        assert prefill.ended_at_s > WHOLE_PREFILL_S * 0.8
        assert pair.holds_nothing()

    on_a_pair(scenario)


def test_both_aborted_in_prefill_end_within_one_chunk() -> None:
    async def scenario(pair: SimulatedPair) -> None:
        prefill, decode = pair.both()
        await asyncio.sleep(2.5 * CHUNK_S)
        aborted_at_s = now_s()
        pair.abort(prefill)
        pair.abort(decode)
        await pair.over(prefill, decode)
        assert max(prefill.ended_at_s, decode.ended_at_s) - aborted_at_s < CHUNK_S
        assert pair.holds_nothing()

    on_a_pair(scenario)


def test_decode_aborted_in_mid_stream_ends_at_the_end_of_its_step() -> None:
    async def scenario(pair: SimulatedPair) -> None:
        _, decode = pair.both(max_tokens=1000)
        while len(decode.ids) < 20:
            await asyncio.sleep(0.01)
        aborted_at_s = now_s()
        pair.abort(decode)
        await pair.over(decode)
        assert decode.ended_at_s - aborted_at_s < 0.02
        assert pair.holds_nothing()

    on_a_pair(scenario)


def test_decode_gone_in_prefill_leaves_prefill_computing_until_it_cannot_write() -> None:
    async def scenario(pair: SimulatedPair) -> None:
        prefill, _ = pair.both()
        await asyncio.sleep(2.5 * CHUNK_S)
        pair.decode.stop()
        await pair.over(prefill)
        assert prefill.end == ("error", "NIXL_ERR_REMOTE_DISCONNECT")
        assert prefill.ended_at_s > WHOLE_PREFILL_S * 0.8
        assert pair.prefill.legs_live == pair.prefill.kv_tokens_used == 0

    on_a_pair(scenario)


def test_prefill_gone_in_prefill_is_found_by_decodes_heartbeats() -> None:
    async def scenario(pair: SimulatedPair) -> None:
        _, decode = pair.both()
        await asyncio.sleep(2.5 * CHUNK_S)
        pair.prefill.stop()
        await pair.over(decode)
        assert decode.end == ("error", "Lost connection with prefill instance")
        assert 2 < decode.ended_at_s < 6
        assert pair.decode.legs_live == pair.decode.kv_tokens_used == 0

    on_a_pair(scenario)


def test_a_silent_prefill_host_is_found_by_heartbeats_too() -> None:
    async def scenario(pair: SimulatedPair) -> None:
        _, decode = pair.both()
        await asyncio.sleep(2.5 * CHUNK_S)
        pair.network.silence("prefill-0.1")
        await pair.over(decode)
        assert decode.end == ("error", "Lost connection with prefill instance")

    on_a_pair(scenario)


@pytest.mark.parametrize("fault", ["freeze", "kill_scheduler"])
def test_a_dead_scheduler_behind_a_live_bootstrap_server_is_found_by_no_heartbeat(fault: str) -> None:
    async def scenario(pair: SimulatedPair) -> None:
        prefill, decode = pair.both()
        await asyncio.sleep(2.5 * CHUNK_S)
        getattr(pair.prefill, fault)()
        await pair.over(decode)
        assert decode.end is not None
        assert "KVPoll.WaitingForInput" in decode.end[1]
        assert prefill.end is None

    on_a_pair(scenario)


def test_prefill_alone_times_out_in_bootstrapping() -> None:
    async def scenario(pair: SimulatedPair) -> None:
        sink = pair.leg(pair.prefill)
        await pair.over(sink)
        assert sink.end is not None
        assert "KVPoll.Bootstrapping" in sink.end[1]
        assert sink.ended_at_s == pytest.approx(TIMEOUT_S, abs=0.1)
        assert pair.holds_nothing()

    on_a_pair(scenario)


def test_decode_alone_times_out_waiting_for_kv() -> None:
    async def scenario(pair: SimulatedPair) -> None:
        sink = pair.leg(pair.decode)
        await pair.over(sink)
        assert sink.end is not None
        assert "KVPoll.WaitingForInput" in sink.end[1]
        assert pair.decode.legs_live == pair.decode.kv_tokens_used == 0

    on_a_pair(scenario)


@pytest.mark.parametrize("which", ["prefill", "decode"])
def test_without_a_room_an_engine_of_a_pair_refuses(which: str) -> None:
    async def scenario(pair: SimulatedPair) -> None:
        sink = pair.leg(getattr(pair, which), room=None)
        await pair.over(sink, limit_s=0.1)
        assert sink.end == ("error", "Disaggregated request received without bootstrap room id")

    on_a_pair(scenario)


def test_room_0_never_lands() -> None:
    async def scenario(pair: SimulatedPair) -> None:
        prefill, decode = pair.both(room=0)
        await pair.over(prefill)
        assert prefill.end == ("length", "")
        await asyncio.sleep(TIMEOUT_S / 2)
        assert (decode.end, decode.ids) == (None, [])
        aborted_at_s = now_s()
        pair.abort(decode)
        await pair.over(decode)
        assert decode.ended_at_s - aborted_at_s < 0.01

    on_a_pair(scenario)


def test_a_room_that_does_not_fit_its_rank_leaves_decode_waiting() -> None:
    async def scenario(pair: SimulatedPair) -> None:
        prefill, decode = pair.both(room=8, prefill_rank=1, dp_rank=1)
        await pair.over(prefill)
        assert prefill.end == ("length", "")
        await asyncio.sleep(TIMEOUT_S / 2)
        assert (decode.end, decode.ids) == (None, [])

    on_a_pair(scenario, ranks=2)


@pytest.mark.parametrize(("prefill_rank", "decode_rank"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_any_two_ranks_meet_in_a_room_that_fits(prefill_rank: int, decode_rank: int) -> None:
    async def scenario(pair: SimulatedPair) -> None:
        room = 8 + prefill_rank
        prefill = pair.leg(pair.prefill, room=room, prefill_rank=prefill_rank, dp_rank=prefill_rank)
        decode = pair.leg(pair.decode, room=room, prefill_rank=prefill_rank, dp_rank=decode_rank, max_tokens=9)
        await pair.over(prefill, decode)
        assert decode.ids == answer(PROMPT, 9, ignore_eos=True)

    on_a_pair(scenario, ranks=2)


def test_two_live_requests_in_one_room_fail_and_one_prefill_stays_until_aborted() -> None:
    async def scenario(pair: SimulatedPair) -> None:
        first, second = pair.both(), pair.both()
        await pair.over(first[1], second[1], second[0], limit_s=1)
        assert second[0].end == ("error", "NIXL_ERR_INVALID_PARAM")
        await asyncio.sleep(2 * TIMEOUT_S)
        assert first[0].end is None
        pair.abort(first[0])
        await pair.over(first[0])
        assert pair.holds_nothing()

    on_a_pair(scenario)


def test_an_abort_before_the_dispatch_is_lost_by_sglang_but_not_by_its_wrapper() -> None:
    async def scenario(pair: SimulatedPair) -> None:
        prefill, decode = pair.both()
        for sink in (prefill, decode):
            pair.abort(sink)
        await pair.over(prefill, decode, limit_s=0.1 if not pair.prefill.model.loses_early_aborts else 60)
        assert prefill.end is not None
        assert prefill.end[0] == ("length" if pair.prefill.model.loses_early_aborts else "abort")
        assert pair.holds_nothing()

    on_a_pair(scenario)
    on_a_pair(scenario, loses_early_aborts=True)


def test_a_second_abort_does_nothing_even_if_the_first_was_lost() -> None:
    async def scenario(pair: SimulatedPair) -> None:
        prefill, decode = pair.both()
        await asyncio.sleep(2.5 * CHUNK_S)
        pair.prefill.lose_aborts()
        pair.abort(prefill)
        pair.abort(prefill)
        await pair.over(prefill, decode)
        assert prefill.end == ("length", "")

    on_a_pair(scenario)


def test_an_abort_takes_every_leg_whose_id_begins_so() -> None:
    async def scenario(pair: SimulatedPair) -> None:
        short, long = pair.leg(pair.prefill, "r1", room=8), pair.leg(pair.prefill, "r10", room=9)
        other = pair.leg(pair.prefill, "r2", room=10)
        await asyncio.sleep(0.1)
        pair.abort(short)
        await pair.over(short, long, limit_s=0.1)
        assert other.end is None

    on_a_pair(scenario)


def test_a_transfer_that_never_ends_is_ended_by_aborts() -> None:
    async def scenario(pair: SimulatedPair) -> None:
        pair.prefill.lose_transfers()
        prefill, decode = pair.both()
        await asyncio.sleep(TIMEOUT_S / 2)
        assert prefill.stages[-1] == "transferring"
        assert (prefill.end, decode.end) == (None, None)
        pair.abort(prefill)
        pair.abort(decode)
        await pair.over(prefill, decode, limit_s=0.1)
        assert pair.holds_nothing()

    on_a_pair(scenario)


def test_no_page_free_keeps_decode_waiting_and_prefill_with_it() -> None:
    async def scenario(pair: SimulatedPair) -> None:
        pair.decode.exhaust_kv()
        prefill, decode = pair.both()
        await asyncio.sleep(TIMEOUT_S / 2)
        assert prefill.stages == decode.stages == ["bootstrapping"]
        pair.decode.exhaust_kv(False)
        await pair.over(prefill, decode, limit_s=2)
        assert decode.ids == answer(PROMPT, 20, ignore_eos=True)

    on_a_pair(scenario)


def test_a_full_pool_ends_a_long_answer_with_an_error_that_can_be_retried() -> None:
    async def scenario(pair: SimulatedPair) -> None:
        _, decode = pair.both(max_tokens=2000, prompt=PROMPT[:100])
        while len(decode.ids) < 500:
            await asyncio.sleep(0.1)
        pair.decode.exhaust_kv()
        await pair.over(decode)
        assert decode.end == ("error", "Request was retracted: the KV pool is full")

    on_a_pair(scenario)


def test_a_cached_prefix_is_not_computed_again_and_counts_as_free() -> None:
    async def scenario(pair: SimulatedPair) -> None:
        rounds: list[list[Event]] = []
        kv: Any = SimpleNamespace(heard=lambda _rank, events, _again: rounds.append(events))
        pair.prefill.kv = kv
        first, _ = pair.both(room=8)
        await pair.over(first)
        assert pair.prefill.loads()[0].kv_tokens_used == 0
        second, _ = pair.both(room=9)
        await pair.over(second)
        assert (first.cached_tokens, second.cached_tokens) == (0, 1984)  # 31 blocks of 64 of 2,000 tokens
        assert second.ended_at_s - first.ended_at_s < WHOLE_PREFILL_S / 2
        for room in range(10, 14):  # others need the memory
            await pair.over(pair.both(room=room, prompt=[room, *PROMPT])[0])
        assert sum(isinstance(event, Stored) for event in rounds[0]) == 31
        assert any(isinstance(event, Removed) for events in rounds for event in events)

    on_a_pair(scenario, kv_tokens=6000)


def test_a_frozen_engine_is_sick_after_3_s_and_goes_on_where_it_was() -> None:
    async def scenario(pair: SimulatedPair) -> None:
        _, decode = pair.both(max_tokens=40)
        while len(decode.ids) < 20:
            await asyncio.sleep(0.01)
        pair.decode.freeze()
        await asyncio.sleep(2)
        [health] = pair.decode.health()
        assert (health.sick, health.beat_age_s) == ("", pytest.approx(2, abs=0.1))
        await asyncio.sleep(2)
        assert "has not come round" in pair.decode.health()[0].sick
        count = len(decode.ids)
        await asyncio.sleep(10)
        assert len(decode.ids) == count
        pair.decode.thaw()
        await pair.over(decode)
        assert decode.ids == answer(PROMPT, 40, ignore_eos=True)
        assert pair.decode.health()[0].sick == ""

    on_a_pair(scenario)


def test_a_long_chunk_is_not_a_sickness() -> None:
    async def scenario(pair: SimulatedPair) -> None:
        pair.prefill.slow(200)
        pair.both()
        await asyncio.sleep(8)
        [health] = pair.prefill.health()
        assert (health.sick, health.beat_age_s > 5) == ("", True)

    on_a_pair(scenario)


def test_a_dead_scheduler_is_told_by_health_at_once() -> None:
    async def scenario(pair: SimulatedPair) -> None:
        pair.prefill.kill_scheduler()
        assert "gone" in pair.prefill.health()[0].sick

    on_a_pair(scenario)


def test_a_dropped_peer_is_connected_anew() -> None:
    async def scenario(pair: SimulatedPair) -> None:
        for room in (8, 9):
            _, decode = pair.both(room=room)
            await pair.over(decode)
            assert decode.end == ("length", "")
            pair.prefill.drop_peer("decode-0#1")
            await asyncio.sleep(0.1)
            assert not pair.network.links

    on_a_pair(scenario)


def test_fake_canaries_reach_every_rank_without_the_other_engine() -> None:
    async def scenario(pair: SimulatedPair) -> None:
        from disagg.plane.engine import Leg
        from disagg.plane.messages import Bootstrap
        from tests.simulation.pair import Sink

        for engine in (pair.prefill, pair.decode):
            for rank in range(2):
                sink = Sink()
                point = Bootstrap("2.2.2.2", 0, 0, rank)
                engine.submit(Leg("canary", [1, 2, 3, 4], {"max_new_tokens": 8}, rank, point), sink)
                await pair.over(sink, limit_s=1)
                assert sink.end is not None
                assert sink.end[0] in ("length", "stop")

    on_a_pair(scenario, ranks=2)


def test_what_was_read_with_one_salt_is_cached_for_that_alone_and_changes_no_token() -> None:
    async def scenario(pair: SimulatedPair) -> None:
        found = []
        for room, salt in enumerate(["", "a", "b", "a", ""], 8):
            reader, decode = pair.both(max_tokens=20, room=room, salt=salt)
            await pair.over(reader, decode)
            assert decode.ids == answer(PROMPT, 20, ignore_eos=True)
            found.append(reader.cached_tokens > 0)
        assert found == [False, False, False, True, True]

    on_a_pair(scenario)


def test_each_adapter_says_other_tokens_and_on_one_leg_alone_two_models_are_mixed(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")

    async def scenario(pair: SimulatedPair) -> None:
        unknown = pair.leg(pair.prefill, adapter="sql")
        await pair.over(unknown)
        assert unknown.end == ("error", "Got LoRA adapter that has never been loaded: sql")
        for engine in (pair.prefill, pair.decode):
            with pytest.raises(ValueError, match="No such file"):
                await engine.load_adapter(Adapter("fr", "/nowhere"))
            await engine.load_adapter(Adapter("sql", str(tmp_path)))
        prefill, decode = pair.both(max_tokens=20, adapter="sql")
        await pair.over(prefill, decode)
        wanted, plain = (answer(PROMPT, 20, ignore_eos=True, adapter=adapter) for adapter in ("sql", ""))
        assert decode.ids == wanted != plain
        reader = pair.leg(pair.prefill, room=9)
        assert reader.cached_tokens == 0, "what was read with an adapter is no prefix of the plain model's"
        mixed = pair.leg(pair.decode, room=9, max_tokens=20, adapter="sql")
        await pair.over(reader, mixed)
        assert mixed.ids[0] == plain[0]
        assert mixed.ids not in (wanted, plain)
        again, _ = pair.both(max_tokens=2, room=10, adapter="sql")
        await pair.over(again)
        assert again.cached_tokens > 0

    on_a_pair(scenario)
