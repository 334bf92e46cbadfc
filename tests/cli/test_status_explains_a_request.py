"""`disagg status --request ID` says why a request went where it went: each of our reasons has its sentences."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec
import pytest
from typer.testing import CliRunner

from disagg.cli.app import app
from disagg.cli.explained import why_there
from disagg.errors import StartError
from disagg.policy_names import SHIPPED
from disagg.routing.policies.least_loaded import SamePrompt, Weighed
from disagg.routing.policies.predicted import LeastCost
from disagg.routing.policies.sides import PickedBySide
from disagg.routing.router import PolicyFailed
from disagg.routing.view import Reason

P, P1, D, A = "prefill-0#1/0", "prefill-1#1/0", "decode-0#2/1", "aggregated-0#1/0"
LEAST = LeastCost(
    wait_ms=782.4, read_ms=935.2, transfer_ms=105.5, itl_ms=13.8, cost_ms=2230.6, cached_tokens=1152, busy=0.2
)


class Odd(Reason, frozen=True):
    """The reason of a policy of one's own."""

    moon: str


def timeline(routed: Reason | None, prefill: str | None = P, decode: str = D, **more: Any) -> dict[str, Any]:
    """As /disagg/requests/ID shows it."""
    shown: dict[str, Any] = {
        "id": "r1",
        "phase": "finished",
        "timeline_ms": {"received": 0.0, "dispatched": 2.5, "first_token": 1802.5},
        "usage": {"prompt_tokens": 4001},
        "tries": 1,
        "cached_tokens": 1088,
    }
    if routed is not None:
        shown |= {"prefill": prefill, "decode": decode, "routed": msgspec.to_builtins(routed)}
    return shown | more


def told(routed: Reason | None, *where: str | None, **more: Any) -> str:
    return "\n".join(why_there(timeline(routed, *where, **more)))  # type: ignore[arg-type]


def least(**changed: Any) -> LeastCost:
    return msgspec.structs.replace(LEAST, **changed)


def test_a_predicted_cost_is_told_with_what_was_expected_and_what_came() -> None:
    assert told(least(next_best=f"{P1} + {D}", next_cost_ms=2900.0)).splitlines() == [
        f"It went to {P} for its prompt and to {D} for its answer.",
        "Policy predicted: it would cost 2230.6 ms there, of its own time and of the others'.",
        "Expected: 782.4 ms until its turn, 935.2 ms to read the prompt, 105.5 ms for its KV; then 13.8 ms a token.",
        "The first token was expected 1823.1 ms after it was sent, and came after 1800.0 ms.",
        "Of its 4001 prompt tokens 1152 were believed to be cached there; the engine found 1088.",
        f"The next best was {P1} + {D}: 2900.0 ms.",
        "Ranks that read prompts were busy for 20% of the time: a second of reading counts as 1.12 s, for those that "
        "come later.",
    ]


def test_an_engine_that_serves_alone_moves_no_kv() -> None:
    said = told(least(transfer_ms=0.0, next_best=f"{P} + {D}", next_cost_ms=3000.0), None, A)
    assert f"It went to {A} alone." in said
    assert "to read the prompt; then 13.8 ms a token" in said
    assert f"The next best was {P} + {D}: 3000.0 ms." in said


@pytest.mark.parametrize(("next_ms", "is_equal"), [(2231.0, True), (2229.0, True), (2250.0, False)])
def test_a_pair_that_costs_as_much_is_told_as_an_equal(next_ms: float, is_equal: bool) -> None:
    said = told(least(next_best=f"{P1} + {D}", next_cost_ms=next_ms))
    assert ("cost as much" in said) is is_equal
    assert ("The next best was" in said) is not is_equal


@pytest.mark.parametrize(
    ("prefill", "decode", "other", "kept"), [(P, D, A, "a pair"), (None, A, f"{P} + {D}", "one engine alone")]
)
def test_a_cheaper_way_of_the_other_kind_was_not_cheap_enough(
    prefill: str | None, decode: str, other: str, kept: str
) -> None:
    said = told(least(next_best=other, next_cost_ms=2000.0), prefill, decode)
    assert f"{other} would have cost 2000.0 ms, but" in said
    assert f"went to {kept} before, and change only for 15% less" in said


def test_where_nothing_else_had_room_there_is_no_next_best() -> None:
    assert "Nothing else had room for it." in told(LEAST)


def test_a_second_try_is_told_and_its_times_are_compared_with_nothing() -> None:
    said = told(LEAST, tries=2)
    assert "That was try 2" in said
    assert "came after" not in said


def test_before_the_first_token_there_is_no_comparison() -> None:
    said = told(LEAST, timeline_ms={"received": 0.0, "dispatched": 2.5}, cached_tokens=None)
    assert "came after" not in said
    assert "the engine found" not in said


@pytest.mark.parametrize(
    ("reader", "decode", "sentences"),
    [
        ({"turn_of": P}, {"turn_of": D}, ["Prefill: its turn.", "Decode: its turn."]),
        ({"of": 4}, {"of": 2}, ["Prefill: drawn from 4 with room.", "Decode: drawn from 2 with room."]),
        ({"drawn": {P: 1, P1: 3}}, {}, [f"Prefill: the less loaded of those drawn ({P} with 1 requests, {P1} with 3"]),
        ({"session": True, "stays": True}, {}, ["Prefill: by its session; where its session was before."]),
        ({"session": True, "stays": False}, {}, ["Prefill: by its session; its session is new, or"]),
        ({"by": "cache", "cached_tokens": 64}, {}, ["enough of the prompt is cached there; 64 prompt tokens believed"]),
        ({"by": "balance", "cached_tokens": 0}, {}, ["loads were too far apart"]),
        ({"by": "least cached", "cached_tokens": 0}, {}, ["too little of the prompt is cached anywhere"]),
        ({"cost_tokens": 812}, {"cost_tokens": 9}, ["Prefill: the least cost, 812 tokens.", "Decode: the least cost"]),
        ({"bucket": 2, "length": 900}, {}, ["Prefill: length bucket 2; 900 tokens long."]),
        ({"warm": 3, "queued_tokens": 70}, {"kv_tokens": 5}, ["3 ranks had most of the prompt; 70 prompt tokens wait"]),
        ({"requests": 1, "kv_tokens": 16}, {}, ["Prefill: the least loaded, 1 requests there before it; 16 KV tokens"]),
        ({"moon": "full"}, {}, ["Prefill: moon full."]),
    ],
)
def test_each_side_tells_what_it_went_by(reader: dict[str, Any], decode: dict[str, Any], sentences: list[str]) -> None:
    said = told(PickedBySide("RoundRobin", reader, decode))
    assert "Policy round_robin." in said
    assert [sentence for sentence in sentences if sentence not in said] == []


def test_an_engine_alone_is_no_prefill() -> None:
    said = told(PickedBySide("BySide", {"requests": 0, "kv_tokens": 0}), None, A)
    assert "Policy one policy a side." in said
    assert "Engine: the least loaded" in said


def test_load_is_told_of_both_sides_together() -> None:
    assert told(Weighed(0, 3, 640)).splitlines() == [
        f"It went to {P} for its prompt and to {D} for its answer.",
        "By load: it was the least loaded with room. Before it: 3 requests, 640 KV tokens, both sides together.",
    ]
    assert "both sides" not in told(Weighed(0, 3, 640), None, A)
    assert "A try of it was lost there before" in told(Weighed(1, 3, 640))


def test_a_sample_follows_its_prompt() -> None:
    assert "Another sample of its prompt has just been read there." in told(SamePrompt(0, 1, 64))


def test_a_policy_that_failed_is_named_with_its_error() -> None:
    assert "Policy Mine failed (KeyError: 's7'), so it was the least loaded" in told(
        PolicyFailed("Mine", "KeyError: 's7'")
    )


def test_a_policy_of_ones_own_is_told_field_by_field() -> None:
    assert "A policy of your own: Odd (moon full)." in told(Odd("full"))


def test_a_request_without_engines_says_what_it_waits_for_or_what_it_failed_with() -> None:
    assert told(None, phase="queued") == "It waits in the frontend: no engine has been chosen yet."
    assert told(None, phase="cancelled") == "It went to no engine."
    error = {"type": "Overloaded", "message": "9 requests wait already; retry later", "where": "request r1"}
    assert told(None, phase="failed", error=error) == "It went to no engine: 9 requests wait already; retry later."


def test_every_shipped_policy_has_its_short_name() -> None:
    for short, path in SHIPPED.items():
        assert f"Policy {short}." in told(PickedBySide(path.partition(":")[2], {}, {}))


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, httpx.Response]:
    """Paths that a frontend knows; asked for instead of the network."""
    known: dict[str, httpx.Response] = {}
    error = {"error": {"message": "there is no request 'nobody' here"}}
    monkeypatch.setattr(
        httpx, "request", lambda _method, url, **_: known.get(httpx.URL(url).path, httpx.Response(404, json=error))
    )
    return known


def test_the_command_prints_times_facts_and_reason(answers: dict[str, httpx.Response]) -> None:
    answers["/disagg/requests/r1"] = httpx.Response(200, json=timeline(Weighed(0, 3, 640)))
    shown = CliRunner().invoke(app, ["status", "--request", "r1"])
    assert shown.exit_code == 0
    assert "    1802.500 ms  first_token\n" in shown.output
    assert f"         decode  {D}\n" in shown.output
    assert "'Weighed'" not in shown.output
    assert shown.output.endswith("Before it: 3 requests, 640 KV tokens, both sides together.\n")


def test_json_is_as_the_frontend_says_it(answers: dict[str, httpx.Response]) -> None:
    answers["/disagg/requests/r1"] = httpx.Response(200, json=timeline(Weighed(0, 3, 640)))
    shown = CliRunner().invoke(app, ["status", "--request", "r1", "--json"])
    assert msgspec.json.decode(shown.output) == timeline(Weighed(0, 3, 640))


def test_an_id_that_nobody_knows_is_told(answers: dict[str, httpx.Response]) -> None:
    shown = CliRunner().invoke(app, ["status", "--request", "nobody"])
    assert isinstance(shown.exception, StartError)
    assert "404: there is no request 'nobody' here" in str(shown.exception)


@pytest.mark.parametrize(
    ("routed", "said"),
    [
        ({"type": "LeastCost"}, "A policy of your own: LeastCost."),
        ({"type": "LeastCost", "cost_ms": "much"}, "A policy of your own: LeastCost (cost_ms much)."),
        ({"type": "Weighed", "moon": 1}, "A policy of your own: Weighed (moon 1)."),
        (
            {"type": "PickedBySide", "policy": "X", "reader": 7},
            "A policy of your own: PickedBySide (policy X, reader 7).",
        ),
        ({"type": ["a"]}, "A policy of your own: ['a']."),
        ({"by": "mine"}, "A policy of your own: its reason has no name (by mine)."),
        ("text", "Its reason is text."),
    ],
)
def test_a_reason_that_lacks_what_its_sentences_say_is_told_as_it_is(routed: Any, said: str) -> None:
    """Of a class of one's own with a name of ours, or of a frontend of another release."""
    assert list(why_there(timeline(None, prefill=P, decode=D) | {"decode": D, "routed": routed}))[1:] == [said]
