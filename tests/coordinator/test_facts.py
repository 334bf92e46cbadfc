"""What a timeline shows of a request: what is known, under the names that operators' scripts read."""

from __future__ import annotations

from disagg.coordinator.facts import Facts, Failure, LostTry
from disagg.routing.endpoints import RankId
from disagg.routing.policies.least_loaded import Weighed


def test_of_a_request_that_came_to_no_engine_nothing_is_shown() -> None:
    assert Facts().shown() == {}
    assert Facts(client_request_id="mine").shown() == {"client_request_id": "mine"}


def test_an_aggregated_engine_has_no_prefill_and_says_so() -> None:
    facts = Facts(room=7, decode=RankId("aggregated-0", "aggregated-0#1", 0), cached_tokens=0)
    assert facts.shown() == {"room": 7, "prefill": None, "decode": "aggregated-0#1/0", "cached_tokens": 0}


def test_ranks_are_names_and_lost_tries_are_told_field_by_field() -> None:
    facts = Facts(
        room=7,
        routed=Weighed(avoided=0, requests=3, kv_tokens=640),
        prefill=RankId("prefill-0", "prefill-0#2", 1),
        decode=RankId("decode-3", "decode-3#1", 0),
        kv_bytes=4096,
        kv_transfer_s=0.25,
        pauses_ms=(12.5,),
        lost_tries=(LostTry("prefill-0#1/1 + decode-3#1/0", 5, "no luck", False),),
        died_under_it=("decode-3#0",),
        error=Failure("LegLost", "no luck; try again", "room 7"),
    )
    assert facts.shown() == {
        "room": 7,
        "routed": {"type": "Weighed", "avoided": 0, "requests": 3, "kv_tokens": 640},
        "prefill": "prefill-0#2/1",
        "decode": "decode-3#1/0",
        "kv_bytes": 4096,
        "kv_transfer_s": 0.25,
        "pauses_ms": [12.5],
        "lost_tries": [
            {"on": "prefill-0#1/1 + decode-3#1/0", "after_tokens": 5, "why": "no luck", "bystander": False},
        ],
        "died_under_it": ["decode-3#0"],
        "error": {"type": "LegLost", "message": "no luck; try again", "where": "room 7"},
    }
