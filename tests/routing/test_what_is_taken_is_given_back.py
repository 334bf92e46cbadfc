"""A reservation counts from its first moment on, is given back once, and keeps others away while it is to be alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests share engines.py; they are not a package

from engines import Client, asked, make_engine, make_router, split

from disagg.plane.ledger import Capacity, fits, kv_tokens_needed, tokens_free, tokens_to_set_aside
from disagg.plane.messages import RankTaken
from disagg.registry.met import Met
from disagg.roles import Role

ONE = Capacity(1, 1 << 20, 1)


def test_a_prefill_has_room_again_before_its_decode_has() -> None:
    router = make_router(*split(1, 2, capacity=ONE))
    changes: list[int] = []
    router.endpoints.on_change = lambda: changes.append(router.endpoints.places_taken)
    first = router.pick(asked())
    assert first
    assert first.pair.prefill
    assert router.pick(asked()) is None
    first.release_leg(first.pair.prefill)
    second = router.pick(asked())
    assert second
    assert second.pair.decode is not first.pair.decode
    first.release()
    second.release()
    assert changes == [1, 2, 1, 0]
    with pytest.raises(KeyError):
        first.release_leg(first.pair.decode)


def test_what_others_had_at_the_last_report_counts_beside_what_is_ours_now() -> None:
    prefill, *decodes = split(1, 2)
    router = make_router(prefill, *decodes)
    far = decodes[0].endpoints[0]
    far.report(RankTaken(2, 100))
    picked = [router.pick(asked()) for _ in range(5)]
    # At 2 and at 3 requests each decode-1 has fewer KV tokens.
    assert [each.pair.decode.life for each in picked if each] == [f"decode-{number}#1" for number in (1, 1, 1, 0, 1)]
    assert far.load == (3, 115)
    far.report(RankTaken(4, 130))  # of which one is ours
    assert far.load == (4, 130)
    ours = picked[3]
    assert ours
    ours.release()
    assert far.load == (3, 115)


def test_of_what_is_ours_a_report_may_know_nothing_yet() -> None:
    router = make_router(*split(1, 1))
    reservation = router.pick(asked())
    assert reservation
    decode = reservation.pair.decode
    decode.report(RankTaken(0, 0))
    assert decode.load == (1, 15)
    assert decode.queued_tokens == 0
    prefill = reservation.pair.reader
    prefill.report(RankTaken(1, 500, to_read=400))
    assert prefill.queued_tokens == 400
    reservation.has_read()
    assert prefill.queued_tokens == 390


def test_a_host_that_refused_has_no_room_for_as_many_tokens_until_it_reports_again() -> None:
    prefill, decode = split(1, 1, capacity=Capacity(8, 1 << 20, 1))
    router = make_router(prefill, decode)
    decode.endpoints[0].on_refused(500)
    decode.endpoints[0].on_refused(1000)
    assert router.pick(asked(500)) is None
    assert router.pick(asked(490, 10)) is None
    small = router.pick(asked(490, 9))
    assert small
    small.release()
    assert router.pick(asked(500)) is None
    decode.endpoints[0].report(RankTaken(0, 0))
    assert router.pick(asked(500))


def test_who_is_to_be_alone_waits_for_an_idle_engine_and_has_it_to_itself() -> None:
    router = make_router(*split(1, 2))
    busy = router.pick(asked())
    alone = router.pick(asked(alone_on={Role.DECODE}))
    assert busy
    assert alone
    assert alone.pair.decode is not busy.pair.decode
    assert router.pick(asked(alone_on={Role.DECODE})) is None
    beside = [router.pick(asked()) for _ in range(4)]
    assert all(each and each.pair.decode is busy.pair.decode for each in beside)
    alone.share()
    shared = router.pick(asked())
    assert shared
    assert shared.pair.decode is alone.pair.decode


def test_an_engine_with_nothing_but_a_canary_is_idle_and_yet_loaded() -> None:
    prefill, *decodes = split(1, 2)
    router = make_router(prefill, *decodes)
    for decode in decodes:
        decode.endpoints[0].report(RankTaken(1, 48, canaries=1))
    alone = router.pick(asked(alone_on={Role.DECODE}))
    assert alone
    assert alone.pair.decode.load == (2, 63)
    other = next(decode for decode in decodes if decode is not alone.pair.decode.engine)
    other.endpoints[0].report(RankTaken(2, 96, canaries=1))
    assert router.pick(asked(alone_on={Role.DECODE})) is None


def test_an_engine_that_comes_back_on_trial_stays_hidden_until_the_trial_ends() -> None:
    prefill, decode = split(1, 1)
    router = make_router(prefill, decode)
    alone = router.pick(asked(alone_on={Role.DECODE}))
    assert alone
    router.endpoints.remove(decode)
    router.endpoints.add(decode)
    assert router.is_ready()
    assert router.pick(asked()) is None
    alone.release()
    assert router.pick(asked())


def test_what_ends_on_an_engine_that_is_gone_brings_it_not_back() -> None:
    prefill, decode = split(1, 1)
    router = make_router(prefill, decode)
    alone = router.pick(asked(alone_on={Role.DECODE}))
    assert alone
    router.endpoints.remove(decode)
    alone.release()
    assert router.pick(asked()) is None
    assert not router.is_ready()


def test_a_connection_that_has_just_ended_is_not_chosen() -> None:
    """Its legs are told first, and each that is given back lets somebody else look for a pair."""
    prefill, *decodes = split(1, 2)
    router = make_router(prefill, *decodes)
    client = decodes[0].endpoints[0].client
    assert isinstance(client, Client)
    client.is_up = False
    picked = [router.pick(asked()) for _ in range(3)]
    assert all(each and each.pair.decode.life == "decode-1#1" for each in picked)


def test_an_engine_that_meets_a_peer_makes_a_pair() -> None:
    prefill, decode = split(1, 1)
    met = Met()
    router = make_router(prefill, decode, met=met)
    assert not router.is_ready()
    assert router.pick(asked()) is None
    met.add(prefill.life, decode.life)
    router.endpoints.meet(met)
    assert router.is_ready()
    assert router.pick(asked())


def test_an_aggregated_engine_alone_is_ready() -> None:
    router = make_router(make_engine("together-0#1", Role.AGGREGATED, 0))
    reservation = router.pick(asked())
    assert router.is_ready()
    assert reservation
    assert reservation.pair.endpoints == (reservation.pair.decode,)


@pytest.mark.parametrize("page_size", [1, 16, 64])
@pytest.mark.parametrize("requests", [1, 3, 4])
def test_the_tokens_that_are_free_are_those_that_fit(page_size: int, requests: int) -> None:
    capacity = Capacity(4, 1000, page_size)
    for kv_tokens in (1, 500, 900, 1000, 1100):
        free = tokens_free(requests, kv_tokens, capacity)
        for prompt_tokens in range(1, 600, 7):
            needed = kv_tokens_needed(prompt_tokens, 3, page_size)
            assert fits(requests, kv_tokens, needed, capacity) == (tokens_to_set_aside(prompt_tokens, 3) <= free)
