"""Prometheus metrics of one frontend process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from disagg.coordinator.request import Request

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class FrontendMetrics:
    def __init__(self) -> None:
        self._registry = CollectorRegistry()

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, registry=self._registry)

        def counters(name: str, text: str, *labels: str) -> Callable[..., Counter]:
            """The counter of each combination of labels; the library's own way to it costs more than counting."""
            return cache(Counter(name, text, labels, registry=self._registry).labels)

        self._requests = counters("disagg_requests", "Requests by the phase they ended in", "phase")
        self._tokens = counters("disagg_tokens", "Tokens by kind", "kind")
        of_rank = ("engine", "dp_rank")
        self._served = counters(
            "disagg_requests_served", "Requests by the ranks they ended on: one each on prefill and on decode", *of_rank
        )
        self._kv_bytes = counters(
            "disagg_kv_transfer_bytes", "KV bytes by the rank that sent them, SGLang's own count", *of_rank
        )
        self._ttft = Histogram(
            "disagg_ttft_seconds", "Received to first token", buckets=SECONDS, registry=self._registry
        )
        self._latency = Histogram(
            "disagg_request_seconds", "Received to the last token", buckets=SECONDS, registry=self._registry
        )
        self._lost_tries = Counter(
            "disagg_lost_tries", "Tries that a leg was lost in, or a deadline", ["when"], registry=self._registry
        )
        self._pause = Histogram(
            "disagg_migration_pause_seconds",
            "How long a client's stream stood still while its request moved to another pair",
            buckets=SECONDS,
            registry=self._registry,
        )
        self._refused = counters(
            "disagg_refused",
            "What the HTTP layer refused before it was a request, and connections it gave up",
            "reason",
        )
        self._refused_before: dict[str, int] = {}
        self._live = gauge("disagg_requests_live", "Requests that have not ended")
        self._queued = gauge("disagg_requests_queued", "Requests that wait for a pair, or for room on one")
        self._attempts = gauge("disagg_attempts_live", "Tries that run: two legs each, one on an aggregated engine")
        self._rooms = gauge("disagg_rooms_live", "Bootstrap rooms not given back yet")
        self._places = gauge("disagg_places_taken", "Requests counted on an engine's dp rank, over all ranks")
        self._tasks = gauge("disagg_tasks", "Tasks of this process's event loop")
        self._granted = {
            kind: Gauge(name, text, ["engine", "dp_rank"], registry=self._registry)
            for kind, name, text in (
                ("requests", "disagg_granted_requests", "Legs that a host has granted, all frontends' together"),
                ("kv_tokens", "disagg_granted_kv_tokens", "KV tokens that a host has set aside for them"),
            )
        }
        self._ready = gauge("disagg_engines_ready", "Engines that are READY")
        self._engines = gauge("disagg_engines", "Engines of the deployment")

    @contextmanager
    def request(self, request: Request) -> Iterator[None]:
        """Counts a request when it ends, however it ends."""
        try:
            yield
        finally:
            self._requests(request.phase.name.lower()).inc()
            self._tokens("prompt").inc(len(request.prompt_ids))
            self._tokens("output").inc(len(request.emitted_ids))
            facts = request.facts
            if facts.prefill:
                self._served(facts.prefill.engine_id, facts.prefill.dp_rank).inc()
                self._kv_bytes(facts.prefill.engine_id, facts.prefill.dp_rank).inc(facts.kv_bytes or 0)
            if facts.decode:
                self._served(facts.decode.engine_id, facts.decode.dp_rank).inc()
            for lost in facts.lost_tries:
                self._lost_tries.labels("after_first_token" if lost.after_tokens else "before_first_token").inc()
            for pause_ms in facts.pauses_ms:
                self._pause.observe(pause_ms / 1e3)
            first = request.timeline.get("first_token")
            if first is not None:
                self._ttft.observe(first - request.received_at_s)
                self._latency.observe(time.monotonic() - request.received_at_s)

    def render(
        self,
        *,
        live: int,
        queued: int,
        attempts: int,
        rooms: int,
        places: int,
        granted: dict[tuple[str, int], tuple[int, int]],
        tasks: int,
        engines_ready: int,
        engines: int,
        refused: Mapping[str, int],
    ) -> bytes:
        """Prometheus' text format. `granted`: (engine id, dp rank) -> (requests, KV tokens); `refused`: reason -> how
        many since this process began."""
        for reason, count in refused.items():
            self._refused(reason).inc(count - self._refused_before.get(reason, 0))
        self._refused_before = dict(refused)
        for gauge in self._granted.values():
            gauge.clear()
        for (engine, rank), (requests, kv_tokens) in granted.items():
            self._granted["requests"].labels(engine, rank).set(requests)
            self._granted["kv_tokens"].labels(engine, rank).set(kv_tokens)
        self._tasks.set(tasks)
        self._live.set(live)
        self._queued.set(queued)
        self._attempts.set(attempts)
        self._rooms.set(rooms)
        self._places.set(places)
        self._ready.set(engines_ready)
        self._engines.set(engines)
        return generate_latest(self._registry)
