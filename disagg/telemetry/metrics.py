"""Prometheus metrics of one frontend process."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

import msgspec
from prometheus_client import CollectorRegistry, Gauge

from disagg.coordinator.facts import Facts
from disagg.coordinator.phases import Phase
from disagg.coordinator.request import Request
from disagg.routing.endpoints import RankId
from disagg.telemetry.aliases import Aliases
from disagg.telemetry.bounds import SECONDS, STEP_SECONDS
from disagg.telemetry.engine_gauges import EngineGauges
from disagg.telemetry.tallies import Count, CountTold, Durations, DurationsTold

_PHASE_LABELS = {phase: (phase.name.lower(),) for phase in Phase}
_PROMPT, _OUTPUT = ("prompt",), ("output",)
_BELIEVED, _FOUND = ("routing",), ("engine",)
GAUGES = {
    "requests": ("disagg_requests_live", "Requests that have not ended"),
    "queued": ("disagg_requests_queued", "Requests that wait for a pair, or for room on one"),
    "attempts": ("disagg_attempts_live", "Tries that run: two legs each, one on an aggregated engine"),
    "rooms": ("disagg_rooms_live", "Bootstrap rooms not given back yet"),
    "places": ("disagg_places_taken", "Requests counted on an engine's dp rank, over all ranks"),
    "tasks": ("disagg_tasks", "Tasks of this process's event loop"),
    "ready": ("disagg_ready", "1 when requests can be served: engines that are READY have met"),
    "engines_ready": ("disagg_engines_ready", "Engines that are READY"),
    "engines": ("disagg_engines", "Engines of the deployment"),
}
GRANTED = (
    ("disagg_granted_requests", "Legs that a host has granted, all frontends' together"),
    ("disagg_granted_kv_tokens", "KV tokens that a host has set aside for them"),
)
CACHES = (
    ("disagg_cached_blocks", "KV blocks that a rank has cached, as far as the routing knows"),
    ("disagg_cached_blocks_known", "1 where the rank itself tells what it has cached, 0 where that is guessed"),
    ("disagg_cache_events_gaps", "How often it was lost sight of on this connection"),
    ("disagg_cache_events_lag_seconds", "How old the last of its events was when it was sent here"),
)
LATE_S = 5.0  # a prefill's last word may come so long after the answer's end
LATE_MAX = 10_000

Told = Mapping[str, Mapping[tuple[str | int, ...], int]]  # what others count, by metric and labels
NOTHING: Told = MappingProxyType({})


class Figures(msgspec.Struct, frozen=True):
    """What one frontend has counted since it began, by the names of metrics; `now`: by those of GAUGES."""

    now: dict[str, int]
    counts: dict[str, CountTold]
    durations: dict[str, DurationsTold]
    of_models: dict[str, Figures] = {}  # of several, by name; then there is nothing else
    frontend: int | None = None  # its number, where there are several


class FrontendMetrics:
    """What a frontend counts of its requests, and what it asks the routing for when it is scraped. Times in seconds.

    `ended` is called at each request's end; `up_to_date` gives what Prometheus reads. `model`: as clients say it;
    `lane_of`: an engine's id -> the lane that its KV goes by; `aliases`: other servers' names to tell it by, too;
    `frontend`: this one's number, where there are several.
    """

    def __init__(
        self,
        model: str = "",
        lane_of: Callable[[str], str] = lambda _engine: "",
        aliases: Sequence[str] = (),
        frontend: int | None = None,
    ) -> None:
        self._lane_of, self._frontend = lane_of, frontend
        self._late: deque[tuple[float, Facts, dict[str, float]]] = deque()
        self._counted: dict[str, int] = {}  # live request -> tokens of it that are in `made`
        self._registry, of_rank = CollectorRegistry(), ("engine", "dp_rank")
        self._counts: dict[str, Count] = {}
        self._durations: dict[str, Durations] = {}
        count, durations = self._count, self._durations_of
        self._requests = count("disagg_requests", "Requests by the phase they ended in", "phase")
        self._tokens = count("disagg_tokens", "Tokens by kind", "kind")
        self._served = count(
            "disagg_requests_served", "Requests by the ranks they ended on: one each on prefill and on decode", *of_rank
        )
        self._routed = count(
            "disagg_routed", "Requests by why they went where they ended, and whether that was a pair", "reason", "to"
        )
        self._cached = count(
            "disagg_prompt_tokens_cached", "Prompt tokens that routing believed to be cached, and engines found", "by"
        )
        self._kv_bytes = count(
            "disagg_kv_transfer_bytes", "KV bytes by the rank that sent them, SGLang's own count", *of_rank
        )
        self._ttft = durations("disagg_ttft_seconds", "Received to first token")
        self._latency = durations("disagg_request_seconds", "Received to the last token")
        self._lost_tries = count("disagg_lost_tries", "Tries that a leg was lost in, or a deadline", "when")
        self._pause = durations(
            "disagg_migration_pause_seconds",
            "How long a client's stream stood still while its request moved to another pair",
        )
        self._refused = count(
            "disagg_refused",
            "What the HTTP layer refused before it was a request, and connections it gave up",
            "reason",
        )
        self._queue = durations("disagg_queue_seconds", "Tokenised until a pair was found, the first time")
        self._prefill = durations(
            "disagg_prefill_seconds", "The prompt's turn until it was read, the engine's own time"
        )
        self._transfer = durations("disagg_kv_transfer_seconds", "How long a request's KV was on its way")
        self._step = durations("disagg_tpot_seconds", "Token to token, the mean of an answer", STEP_SECONDS)
        self._lane_bytes = count("disagg_kv_lane_bytes", "KV bytes by the lane of the engine that sent them", "lane")
        self._lane_transfers = count("disagg_kv_lane_transfers", "Requests whose KV was sent, by lane", "lane")
        self._made = count(
            "disagg_rank_tokens",
            "Tokens that a rank read (prompt, cached ones too) and made (output)",
            *of_rank,
            "kind",
        )
        self._finished = count("disagg_finished", "Requests that finished, by why their answer ended", "reason")
        self._failed = count("disagg_failed", "Requests that failed, by the kind of their error", "error")
        count("disagg_errors", "Answers to clients that were an error, by its code, whatever was asked", "code")
        count("disagg_key_requests", "Requests by the name of their API key", "key")
        count("disagg_key_tokens", "Tokens by the name of their API key", "key", "kind")
        count("disagg_key_refused", "Requests that a limit of their API key refused", "key", "limit")
        count("disagg_trace_spans", "Spans of traces: sent to the collector, or dropped", "outcome")
        self._gauges = {key: Gauge(name, text, registry=self._registry) for key, (name, text) in GAUGES.items()}
        self._granted = [Gauge(name, text, of_rank, registry=self._registry) for name, text in GRANTED]
        self._caches = [Gauge(name, text, of_rank, registry=self._registry) for name, text in CACHES]
        self.engines = EngineGauges(self._registry)
        if aliases:
            Aliases(self._registry, aliases, model, self._counts, self._durations, self._gauges, self.engines)

    def _count(self, name: str, text: str, *labels: str) -> Count:
        found = self._counts[name] = Count(self._registry, name, text, *labels)
        return found

    def _durations_of(self, name: str, text: str, bounds_s: Sequence[float] = SECONDS) -> Durations:
        found = self._durations[name] = Durations(self._registry, bounds_s, name, text)
        return found

    def ended(self, request: Request) -> None:
        """Counts a request, however it ended."""
        self._requests.by_labels[_PHASE_LABELS[request.phase]] += 1
        self._tokens.by_labels[_PROMPT] += len(request.prompt_ids)
        self._tokens.by_labels[_OUTPUT] += len(request.emitted_ids)
        facts = request.facts
        if facts.prefill:
            self._served.by_labels[_labels(facts.prefill)] += 1
            self._kv_bytes.by_labels[_labels(facts.prefill)] += 0
        if facts.decode:
            self._served.by_labels[_labels(facts.decode)] += 1
        if facts.routed is not None:
            self._routed.by_labels[type(facts.routed).__name__, "pair" if facts.prefill else "one engine"] += 1
            self._cached.by_labels[_BELIEVED] += getattr(facts.routed, "cached_tokens", 0)
            self._cached.by_labels[_FOUND] += facts.cached_tokens or 0
        for lost in facts.lost_tries:
            self._lost_tries.by_labels[("after_first_token" if lost.after_tokens else "before_first_token",)] += 1
        for pause_ms in facts.pauses_ms:
            self._pause.add(pause_ms / 1e3)
        timeline = request.timeline
        first_s, admitted_s = timeline.get("first_token"), timeline.get("admitted")
        if first_s is not None:
            self._ttft.add(first_s - request.received_at_s)
            self._latency.add(time.monotonic() - request.received_at_s)
            if (tokens := len(request.emitted_ids)) > 1 and request.phase is Phase.FINISHED:
                self._step.add((request.token_at_s - first_s) / (tokens - 1))
        if admitted_s is not None:
            self._queue.add(admitted_s - timeline.get("tokenised", request.received_at_s))
        if request.phase is Phase.FINISHED:
            is_cut = request.came_whole == "length" and not request.text.stopped
            self._finished.by_labels["length" if is_cut else "stop",] += 1
        if facts.error is not None and request.phase is Phase.FAILED:
            self._failed.by_labels[facts.error.type,] += 1
        self._count_tokens(request)
        self._counted.pop(request.id, None)
        if not self._settle(facts, timeline):
            if len(self._late) >= LATE_MAX:
                self._settle(*self._late.popleft()[1:], is_late=True)
            self._late.append((time.monotonic() + LATE_S, facts, timeline))

    def look(self, live: Iterable[Request]) -> None:
        """Counts what live requests have made so far: a long answer is not to come as one lump, at its end."""
        for request in live:
            self._count_tokens(request)

    def _count_tokens(self, request: Request) -> None:
        tokens, facts = len(request.emitted_ids), request.facts
        if facts.decode is None or not (tokens or request.embedding):
            return
        before = self._counted.get(request.id)
        if before is None:
            reader = facts.prefill or facts.decode
            self._made.by_labels[reader.engine_id, reader.dp_rank, "prompt"] += len(request.prompt_ids)
        if (new := tokens - (before or 0)) > 0:  # fewer: it has begun anew
            self._made.by_labels[facts.decode.engine_id, facts.decode.dp_rank, "output"] += new
        self._counted[request.id] = tokens

    def _settle(self, facts: Facts, timeline: Mapping[str, float], *, is_late: bool = False) -> bool:
        """Counts what prefill's last word tells; False: it has not come yet."""
        if facts.prefill is not None and facts.kv_bytes is None and not is_late:
            return False
        if "prefill_end" in timeline and "prefill_start" in timeline:
            self._prefill.add(max(0.0, timeline["prefill_end"] - timeline["prefill_start"]))
        if facts.prefill is not None and facts.kv_bytes is not None:
            lane = self._lane_of(facts.prefill.engine_id) or "unknown"
            self._kv_bytes.by_labels[_labels(facts.prefill)] += facts.kv_bytes
            self._lane_bytes.by_labels[lane,] += facts.kv_bytes
            self._lane_transfers.by_labels[lane,] += 1
            self._transfer.add(facts.kv_transfer_s or 0.0)
        return True

    def _settle_late(self) -> None:
        now_s, late = time.monotonic(), self._late
        for _ in range(len(late)):
            until_s, facts, timeline = late.popleft()
            if not self._settle(facts, timeline, is_late=now_s > until_s):
                late.append((until_s, facts, timeline))

    def figures(self, now: Mapping[str, int], refused: Mapping[str, int], told: Told = NOTHING) -> Figures:
        """`now`: the numbers of GAUGES that are a frontend's own; `refused`: reason -> how many since this process
        began; `told`: what else was counted since then."""
        self._settle_late()
        self._refused.by_labels.update({(reason,): count for reason, count in refused.items()})
        for name, by_labels in told.items():
            self._counts[name].by_labels.update(by_labels)
        counts = {name: count.own for name, count in self._counts.items()}
        durations = {name: each.own for name, each in self._durations.items()}
        return Figures(dict(now), counts, durations, frontend=self._frontend)

    def up_to_date(
        self,
        own: Figures,
        others: Sequence[Figures],
        engines: Mapping[str, int],
        granted: Mapping[tuple[str, int], Sequence[float]],
        caches: Mapping[tuple[str, int], Sequence[float]],
    ) -> CollectorRegistry:
        """Of all frontends together. `engines`: the numbers of GAUGES that are the
        deployment's; `granted`, `caches`: (engine id, dp rank) -> those of GRANTED and CACHES."""
        every = [own, *others]
        for name, count in self._counts.items():
            count.told = [(each.frontend, each.counts[name]) for each in every if name in each.counts]
        for name, durations in self._durations.items():
            durations.told = [(each.frontend, each.durations[name]) for each in every if name in each.durations]
        for gauges, of_ranks in ((self._granted, granted), (self._caches, caches)):
            for index, gauge in enumerate(gauges):
                gauge.clear()
                for rank, numbers in of_ranks.items():
                    gauge.labels(*rank).set(numbers[index])
        for key in own.now:
            self._gauges[key].set(sum(each.now.get(key, 0) for each in every))
        for key, number in engines.items():
            self._gauges[key].set(number)
        return self._registry


def _labels(rank: RankId) -> tuple[str, int]:
    return rank.engine_id, rank.dp_rank
