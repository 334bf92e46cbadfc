"""The spans of one HTTP request, made from what is known of it when it has ended.

Way:   HttpTrace, with the timeline and the facts of its requests -> [spans_of] -> otlp.py
Out:   HTTP > tokenise, and a request a sample > queue, try > prefill leg (bootstrap, prefill), transfer, decode leg
Owns:  the names of spans and attributes: OpenTelemetry's for generative AI where it has one, else disagg.*
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from disagg.coordinator.remembered import Remembered
from disagg.coordinator.trace import RequestTrace, TryTrace, new_span_id
from disagg.telemetry.traces.http_trace import HttpTrace

Value = str | int | float | bool
Moments = dict[str, float]
OPERATIONS = {"chat": "chat", "responses": "chat", "messages": "chat", "embeddings": "embeddings"}
NONE: Mapping[str, Value] = MappingProxyType({})
BREAKS = ("retry", "migrate")  # ends of a try that is not the last
ENDS = ("finish", "failure", "client_gone")


class Span(NamedTuple):
    """Times are monotonic seconds of this process. `kind`: server, client or internal; `events`: name and time."""

    name: str
    span_id: str
    parent: str
    begin_s: float
    end_s: float
    kind: str = "internal"
    attributes: Mapping[str, Value] = NONE
    events: tuple[tuple[str, float], ...] = ()
    error: str = ""


class Tried(NamedTuple):
    begin_s: float
    end_s: float
    ended_by: str
    moments: Moments


def spans_of(http: HttpTrace, model: str) -> list[Span]:
    """`model`: where none was asked for yet."""
    done = [trace for trace in http.requests if trace.ended is not None]
    said: dict[str, Value] = {
        "http.request.method": "POST",
        "url.path": http.path,
        "gen_ai.provider.name": "disagg",
        "gen_ai.operation.name": _operation(http.path),
        "gen_ai.request.model": http.model or model,
    }
    if http.status:
        said["http.response.status_code"] = http.status
    if http.error:
        said["error.type"] = http.error
    if done and done[0].ended is not None:
        said |= _answer(done[0].ended, [trace.ended for trace in done if trace.ended is not None])
    is_clients_mistake = 400 <= http.status < 500 and http.error != "client_gone"  # no error of a server's span
    error = "" if is_clients_mistake else http.error  # also of a stream that failed behind its 200
    name = f"{said['gen_ai.operation.name']} {said['gen_ai.request.model']}"
    spans = [Span(name, http.span_id, http.parent, http.began_s, http.ended_s, "server", said, (), error)]
    for index, trace in enumerate(done):
        assert trace.ended is not None
        tokenised_s = trace.ended.timeline.get("tokenised")
        if tokenised_s is not None and not index:
            spans.append(Span("tokenise", new_span_id(), http.span_id, trace.ended.received_at_s, tokenised_s))
        spans += _request(http, trace, trace.ended)
    return spans


def _operation(path: str) -> str:
    path = path.rstrip("/")
    last = path.rpartition("/")[2] if not path.endswith("/completions") or "chat" not in path else "chat"
    return OPERATIONS.get(last, "text_completion" if last in ("completions", "generate") else last)


def _answer(first: Remembered, every: list[Remembered]) -> dict[str, Value]:
    said: dict[str, Value] = {
        "gen_ai.response.id": first.id,
        "gen_ai.usage.input_tokens": first.prompt_tokens,
        "gen_ai.usage.output_tokens": sum(each.output_tokens for each in every),
    }
    if first.facts.adapter:
        said["gen_ai.request.model"] = first.facts.adapter
    if first.facts.cached_tokens is not None:
        said["gen_ai.usage.cache_read.input_tokens"] = first.facts.cached_tokens
    if (first_s := first.timeline.get("first_token")) is not None:
        said["gen_ai.response.time_to_first_chunk"] = round(first_s - first.received_at_s, 6)
    return said


def _request(http: HttpTrace, trace: RequestTrace, ended: Remembered) -> Iterator[Span]:
    facts = ended.facts
    begin_s = ended.timeline.get("tokenised", ended.received_at_s)
    end_s = max((at_s for _, at_s in trace.moments), default=http.ended_s)
    said: dict[str, Value] = {"disagg.request.id": ended.id, "disagg.phase": ended.phase.name.lower()}
    said |= {"disagg.tries": ended.tries, "disagg.prompt_tokens": ended.prompt_tokens}
    said["disagg.output_tokens"] = ended.output_tokens
    if facts.routed is not None:
        said["disagg.routed"] = type(facts.routed).__name__
    events = tuple((name, at_s) for name, at_s in trace.moments if name in (*BREAKS, "first_token"))
    error = facts.error.message if facts.error is not None else ""
    yield Span("request", trace.span_id, http.span_id, begin_s, end_s, "internal", said, events, error)
    waited_s, tried = _walk(trace, begin_s, end_s)
    for number, (since_s, until_s) in enumerate(waited_s):
        why = {"disagg.try": number + 1}
        reserved = (("reserved", until_s),) if number < len(tried) else ()
        yield Span("queue", new_span_id(), trace.span_id, since_s, until_s, "internal", {**why}, reserved)
    for number, (each, on) in enumerate(zip(tried, trace.tries, strict=False)):
        yield from _try(trace, ended, number, each, on, is_last=number == len(trace.tries) - 1)


def _walk(trace: RequestTrace, begin_s: float, end_s: float) -> tuple[list[tuple[float, float]], list[Tried]]:
    """(its waits for a pair, its tries)."""
    waits: list[tuple[float, float]] = []
    tried: list[Tried] = []
    waits_since_s: float | None = begin_s
    running: Moments | None = None
    for name, at_s in trace.moments:
        if name == "admitted" and waits_since_s is not None:
            waits.append((waits_since_s, at_s))
            waits_since_s = None
        elif name == "dispatched":
            running = {name: at_s}
        elif name in BREAKS or name in ENDS:
            if running is not None:
                tried.append(Tried(running["dispatched"], at_s, name, running))
            elif waits_since_s is not None:
                waits.append((waits_since_s, at_s))
            waits_since_s, running = (at_s if name in BREAKS else None), None
        elif running is not None:
            running.setdefault(name, at_s)
    if running is not None:
        tried.append(Tried(running["dispatched"], end_s, "", running))
    return waits, tried


def _try(
    trace: RequestTrace, ended: Remembered, number: int, tried: Tried, on: TryTrace, *, is_last: bool
) -> Iterator[Span]:
    facts, span_id, moments = ended.facts, new_span_id(), dict(tried.moments)
    if is_last:  # what engines measured, they measured on it
        names = ("prefill_start", "prefill_end", "transfer_start", "transfer_end")
        moments |= {name: ended.timeline[name] for name in names if name in ended.timeline}
    moments = {name: min(max(at_s, tried.begin_s), tried.end_s) for name, at_s in moments.items()}
    pair = " + ".join(filter(None, (on.prefill, on.decode)))
    said: dict[str, Value] = {"disagg.try": number + 1, "disagg.room": on.room, "disagg.pair": pair}
    lost = next((each.why for each in facts.lost_tries if each.on == pair), "") if tried.ended_by in BREAKS else ""
    error = (lost or "refused") if tried.ended_by in BREAKS else ""
    yield Span("try", span_id, trace.span_id, tried.begin_s, tried.end_s, "internal", said, (), error)
    reader = on.spans[0]
    first_s = moments.get("first_token", tried.end_s)
    read_s = moments.get("prefill_end", moments.get("transfer_start", first_s))
    if on.prefill:
        of_rank: dict[str, Value] = {"disagg.rank": on.prefill}
        yield Span(
            "prefill leg", reader, span_id, tried.begin_s, moments.get("transfer_end", read_s), "client", of_rank
        )
    turn_s = moments.get("prefill_start")
    if turn_s is not None:
        yield Span("bootstrap", new_span_id(), reader, moments.get("bootstrap_start", tried.begin_s), turn_s)
        cached: dict[str, Value] = {}
        if is_last and facts.cached_tokens is not None:
            cached["disagg.cached_tokens"] = facts.cached_tokens
        yield Span("prefill", new_span_id(), reader, turn_s, max(turn_s, read_s), "internal", cached)
    if on.prefill and (sends_s := moments.get("transfer_start")) is not None:
        moved: dict[str, Value] = {"disagg.from": on.prefill, "disagg.to": on.decode}
        if is_last and facts.kv_bytes is not None:
            moved["disagg.kv_bytes"] = facts.kv_bytes
        came_s = moments.get("transfer_end", first_s)
        yield Span("transfer", new_span_id(), span_id, sends_s, max(sends_s, came_s), "internal", moved)
    name = "decode leg" if on.prefill else "aggregated leg"
    events = (("first_token", first_s),) if "first_token" in moments else ()
    of_decode: dict[str, Value] = {"disagg.rank": on.decode}
    yield Span(name, on.spans[-1], span_id, tried.begin_s, tried.end_s, "client", of_decode, events)
