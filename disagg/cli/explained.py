"""Why a request went where it went, in sentences: what `disagg status --request ID` says under its timeline.

In:    a timeline of /disagg/requests/ID, whose `routed` is one of our Reasons, or that of a policy of one's own
Out:   sentences, where it went first
Fails: never. What no sentence is known for, as of a frontend of another release, is told as name and value
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from disagg.policy_names import SHIPPED
from disagg.routing.policies.predicted import BUSY_MAX, KEEP
from disagg.routing.policies.receivers import TIE, TIE_S

Facts = dict[str, Any]
NAMES = {path.partition(":")[2]: name for name, path in SHIPPED.items()} | {"BySide": "one policy a side"}


def why_there(timeline: Facts) -> Iterator[str]:
    routed = timeline.get("routed")
    if routed is None:
        yield _nowhere(timeline)
        return
    yield _where(timeline)
    yield from _why(routed, timeline)


def _why(routed: Any, timeline: Facts) -> list[str]:
    if not isinstance(routed, dict):
        return [f"Its reason is {routed}."]
    try:
        return list(_BY_TYPE[routed["type"]](routed, timeline))
    except (LookupError, TypeError, ValueError, AttributeError):  # it is not ours, or not of this release
        return list(_of_ones_own(routed, timeline))


def _nowhere(timeline: Facts) -> str:
    if error := timeline.get("error"):
        return f"It went to no engine: {error['message']}."
    if timeline.get("phase") == "queued":
        return "It waits in the frontend: no engine has been chosen yet."
    return "It went to no engine."


def _where(timeline: Facts) -> str:
    prefill, decode, tries = timeline.get("prefill"), timeline.get("decode"), timeline.get("tries", 1)
    where = f"{prefill} for its prompt and to {decode} for its answer" if prefill else f"{decode} alone"
    of_which = f" That was try {tries}, and what follows is of that one." if tries > 1 else ""
    return f"It went to {where}.{of_which}"


def _least_cost(routed: Facts, timeline: Facts) -> Iterator[str]:
    yield f"Policy predicted: it would cost {_ms(routed['cost_ms'])} there, of its own time and of the others'."
    transfer = f", {_ms(routed['transfer_ms'])} for its KV" if timeline.get("prefill") else ""
    yield (
        f"Expected: {_ms(routed['wait_ms'])} until its turn, {_ms(routed['read_ms'])} to read the prompt{transfer}; "
        f"then {_ms(routed['itl_ms'])} a token."
    )
    if came := _first_token(routed, timeline):
        yield came
    yield _cached(routed, timeline)
    yield _beaten(routed, timeline)
    if (busy := min(routed["busy"], BUSY_MAX)) >= 0.005:
        yield (
            f"Ranks that read prompts were busy for {routed['busy']:.0%} of the time: a second of reading counts as "
            f"{1 + busy / (2 * (1 - busy)):.2f} s, for those that come later."
        )


def _first_token(routed: Facts, timeline: Facts) -> str:
    """How well it was foreseen; of a request that was tried again, times of several tries are mixed."""
    at_ms = timeline.get("timeline_ms", {})
    if timeline.get("tries", 1) > 1 or "first_token" not in at_ms or "dispatched" not in at_ms:
        return ""
    expected_ms = routed["wait_ms"] + routed["read_ms"] + routed["transfer_ms"]
    came_ms = at_ms["first_token"] - at_ms["dispatched"]
    return f"The first token was expected {_ms(expected_ms)} after it was sent, and came after {_ms(came_ms)}."


def _cached(routed: Facts, timeline: Facts) -> str:
    prompt = timeline["usage"]["prompt_tokens"]
    found = timeline.get("cached_tokens")
    of_it = "" if found is None else f"; the engine found {found}"
    return f"Of its {prompt} prompt tokens {routed['cached_tokens']} were believed to be cached there{of_it}."


def _beaten(routed: Facts, timeline: Facts) -> str:
    other, cost_ms, other_ms = routed["next_best"], routed["cost_ms"], routed["next_cost_ms"]
    if not other:
        return "Nothing else had room for it."
    if (" + " in other) is not bool(timeline.get("prefill")):
        if other_ms < cost_ms:
            kept = "a pair" if timeline.get("prefill") else "one engine alone"
            return (
                f"{other} would have cost {_ms(other_ms)}, but prompts with about so much to read went to {kept} "
                f"before, and change only for {KEEP:.0%} less."
            )
    elif max(cost_ms, other_ms) <= min(cost_ms, other_ms) * (1 + TIE) + TIE_S * 1e3:
        return (
            f"{other} would have cost as much ({_ms(other_ms)}): of equals the reader with the least in its cache is "
            "taken, then one at random."
        )
    return f"The next best was {other}: {_ms(other_ms)}."


def _by_side(routed: Facts, timeline: Facts) -> Iterator[str]:
    yield f"Policy {NAMES.get(routed['policy'], routed['policy'])}."
    reader = "Prefill" if timeline.get("prefill") else "Engine"
    for side, went_by in ((reader, routed.get("reader")), ("Decode", routed.get("decode"))):
        if went_by:
            yield f"{side}: {'; '.join(_went_by(name, value) for name, value in went_by.items())}."


_WENT_BY = {
    "turn_of": "its turn",
    "of": "drawn from {} with room",
    "requests": "the least loaded, {} requests there before it",
    "kv_tokens": "{} KV tokens there",
    "cost_tokens": "the least cost, {} tokens",
    "cached_tokens": "{} prompt tokens believed to be cached there",
    "bucket": "length bucket {}",
    "length": "{} tokens long",
    "warm": "{} ranks had most of the prompt",
    "queued_tokens": "{} prompt tokens waited there",
}
_SAID = {
    ("session", True): "by its session",
    ("stays", True): "where its session was before",
    ("stays", False): "its session is new, or that rank had no room or too many requests",
    ("by", "balance"): "loads were too far apart, so the least loaded",
    ("by", "cache"): "enough of the prompt is cached there",
    ("by", "least cached"): "too little of the prompt is cached anywhere, so the one with the least in its cache",
}


def _went_by(name: str, value: Any) -> str:
    if name == "drawn" and isinstance(value, dict):
        drawn = ", ".join(f"{rank} with {requests} requests" for rank, requests in value.items())
        return f"the less loaded of those drawn ({drawn})"
    if not isinstance(value, (dict, list)) and (name, value) in _SAID:
        return _SAID[name, value]
    return _WENT_BY[name].format(value) if name in _WENT_BY else f"{name} {value}"


def _weighed(routed: Facts, timeline: Facts) -> Iterator[str]:
    yield f"By load: it was the least loaded with room. {_load(routed, timeline)}"
    if routed["avoided"]:
        yield "A try of it was lost there before; nothing else had room."


def _same_prompt(routed: Facts, timeline: Facts) -> Iterator[str]:
    yield f"Another sample of its prompt has just been read there. {_load(routed, timeline)}"


def _load(routed: Facts, timeline: Facts) -> str:
    both = ", both sides together" if timeline.get("prefill") else ""
    return f"Before it: {routed['requests']} requests, {routed['kv_tokens']} KV tokens{both}."


def _failed(routed: Facts, _timeline: Facts) -> Iterator[str]:
    yield (
        f"Policy {routed['policy']} failed ({routed['why']}), so it was the least loaded with room; the frontend's log "
        "says more."
    )


def _of_ones_own(routed: Facts, _timeline: Facts) -> Iterator[str]:
    fields = ", ".join(f"{name} {value}" for name, value in routed.items() if name != "type")
    yield f"A policy of your own: {routed.get('type', 'its reason has no name')}{f' ({fields})' if fields else ''}."


def _ms(milliseconds: float) -> str:
    return f"{milliseconds / 1e3:.2f} s" if milliseconds >= 10_000 else f"{milliseconds:.1f} ms"


_BY_TYPE: dict[str, Callable[[Facts, Facts], Iterator[str]]] = {
    "LeastCost": _least_cost,
    "PickedBySide": _by_side,
    "Weighed": _weighed,
    "SamePrompt": _same_prompt,
    "PolicyFailed": _failed,
}
