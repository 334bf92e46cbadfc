"""Prometheus metrics of one frontend process."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import msgspec
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from disagg.coordinator.phases import Phase
from disagg.coordinator.request import Request
from disagg.routing.endpoints import RankId
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
NONE: Mapping[str, int] = MappingProxyType({})
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Figures(msgspec.Struct, frozen=True):
    """What one frontend has counted since it began, by the names of metrics; `now`: by those of GAUGES."""

    now: dict[str, int]
    counts: dict[str, CountTold]
    durations: dict[str, DurationsTold]


class FrontendMetrics:
    """What a frontend counts of its requests, and what it asks the routing for when it is scraped. Times in seconds.

    `request` spans one request from its arrival to its end; `render` gives the text that Prometheus reads.
    """

    def __init__(self) -> None:
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
        self._spans = count("disagg_trace_spans", "Spans of traces: sent to the collector, or dropped", "outcome")
        self._gauges = {key: Gauge(name, text, registry=self._registry) for key, (name, text) in GAUGES.items()}
        self._granted = [Gauge(name, text, of_rank, registry=self._registry) for name, text in GRANTED]
        self._caches = [Gauge(name, text, of_rank, registry=self._registry) for name, text in CACHES]

    def _count(self, name: str, text: str, *labels: str) -> Count:
        found = self._counts[name] = Count(self._registry, name, text, *labels)
        return found

    def _durations_of(self, name: str, text: str) -> Durations:
        found = self._durations[name] = Durations(self._registry, SECONDS, name, text)
        return found

    def ended(self, request: Request) -> None:
        """Counts a request, however it ended."""
        self._requests.by_labels[_PHASE_LABELS[request.phase]] += 1
        self._tokens.by_labels[_PROMPT] += len(request.prompt_ids)
        self._tokens.by_labels[_OUTPUT] += len(request.emitted_ids)
        facts = request.facts
        if facts.prefill:
            self._served.by_labels[_labels(facts.prefill)] += 1
            self._kv_bytes.by_labels[_labels(facts.prefill)] += facts.kv_bytes or 0
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
        first_s = request.timeline.get("first_token")
        if first_s is not None:
            self._ttft.add(first_s - request.received_at_s)
            self._latency.add(time.monotonic() - request.received_at_s)

    def figures(self, now: Mapping[str, int], refused: Mapping[str, int], spans: Mapping[str, int] = NONE) -> Figures:
        """`now`: the numbers of GAUGES that are a frontend's own; `refused`: reason -> how many since this process
        began; `spans`: outcome -> how many."""
        self._spans.by_labels.update({(outcome,): count for outcome, count in spans.items()})
        self._refused.by_labels.update({(reason,): count for reason, count in refused.items()})
        counts = {name: count.own for name, count in self._counts.items()}
        return Figures(dict(now), counts, {name: each.own for name, each in self._durations.items()})

    def render(
        self,
        own: Figures,
        others: Sequence[Figures],
        engines: Mapping[str, int],
        granted: Mapping[tuple[str, int], Sequence[float]],
        caches: Mapping[tuple[str, int], Sequence[float]],
    ) -> bytes:
        """Prometheus' text format, of all frontends together. `engines`: the numbers of GAUGES that are the
        deployment's; `granted`, `caches`: (engine id, dp rank) -> those of GRANTED and CACHES."""
        every = [own, *others]
        for name, count in self._counts.items():
            count.told = [told for each in every for told in each.counts.get(name, ())]
        for name, durations in self._durations.items():
            durations.told = [each.durations[name] for each in every if name in each.durations]
        for gauges, of_ranks in ((self._granted, granted), (self._caches, caches)):
            for index, gauge in enumerate(gauges):
                gauge.clear()
                for rank, numbers in of_ranks.items():
                    gauge.labels(*rank).set(numbers[index])
        for key in own.now:
            self._gauges[key].set(sum(each.now.get(key, 0) for each in every))
        for key, number in engines.items():
            self._gauges[key].set(number)
        return generate_latest(self._registry)


def _labels(rank: RankId) -> tuple[str, int]:
    return rank.engine_id, rank.dp_rank
