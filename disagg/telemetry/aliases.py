"""Our numbers by other servers' names, for boards that exist: SGLang's, vLLM's, OpenTelemetry's for generative AI.

Way:   the counts and durations of metrics.py -> [Aliases] -> prometheus_client, at each GET /metrics
In:    `telemetry.metric_aliases`; without it there is none of this
Owns:  which name means the same as which of ours. A name whose meaning differs is not here (docs/telemetry.md lists
       them): a board would show a number that is wrong. Of a frontend, not of one engine: a deployment is one server
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from disagg.telemetry import bounds
from disagg.telemetry.engine_gauges import EngineGauges
from disagg.telemetry.tallies import Count, Durations

Labels = dict[str, str]
RATE_S = 1.0  # a rate is of at least so long

HISTOGRAMS: dict[str, dict[str, tuple[str, Sequence[float]]]] = {
    "sglang": {
        "sglang:time_to_first_token_seconds": ("disagg_ttft_seconds", bounds.SGLANG_FIRST),
        "sglang:e2e_request_latency_seconds": ("disagg_request_seconds", bounds.SGLANG_WHOLE),
        "sglang:queue_time_seconds": ("disagg_queue_seconds", bounds.SGLANG_QUEUE),
    },
    "vllm": {
        "vllm:time_to_first_token_seconds": ("disagg_ttft_seconds", bounds.VLLM_FIRST),
        "vllm:e2e_request_latency_seconds": ("disagg_request_seconds", bounds.VLLM_WHOLE),
        "vllm:request_queue_time_seconds": ("disagg_queue_seconds", bounds.VLLM_WHOLE),
        "vllm:request_prefill_time_seconds": ("disagg_prefill_seconds", bounds.VLLM_WHOLE),
        "vllm:request_time_per_output_token_seconds": ("disagg_tpot_seconds", bounds.VLLM_STEP),
    },
    "otel": {
        "gen_ai_server_time_to_first_token_seconds": ("disagg_ttft_seconds", bounds.OTEL_FIRST),
        "gen_ai_server_request_duration_seconds": ("disagg_request_seconds", bounds.OTEL_WHOLE),
        "gen_ai_server_time_per_output_token_seconds": ("disagg_tpot_seconds", bounds.OTEL_STEP),
    },
}
KINDS = tuple(HISTOGRAMS)


class Aliases(Collector):
    """`kinds`: of KINDS. The others are FrontendMetrics' own."""

    def __init__(
        self,
        registry: CollectorRegistry,
        kinds: Sequence[str],
        model: str,
        counts: Mapping[str, Count],
        durations: Mapping[str, Durations],
        gauges: Mapping[str, Gauge],
        engines: EngineGauges,
    ) -> None:
        self._kinds, self._counts, self._durations = kinds, counts, durations
        self._gauges, self._engines = gauges, engines
        self._labels: Labels = {"model_name": model}
        self._otel = {"gen_ai_request_model": model, "gen_ai_provider_name": "disagg"}
        self._before = time.monotonic(), 0  # when tokens were last looked at, and how many
        self._rate = 0.0
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        for kind in self._kinds:
            labels = self._otel if kind == "otel" else self._labels
            for name, (of_ours, bounds_s) in HISTOGRAMS[kind].items():
                yield self._durations[of_ours].family(name, f"As {of_ours}", bounds_s, labels)
        if "sglang" in self._kinds:
            yield from self._sglang()
        if "vllm" in self._kinds:
            yield from self._vllm()

    def _sglang(self) -> Iterator[Metric]:
        live, queued = self._live()
        yield self._gauge("sglang:num_running_reqs", "Requests that run", live - queued)
        yield self._gauge("sglang:num_queue_reqs", "Requests that wait for a pair", queued)
        yield self._gauge("sglang:token_usage", "As disagg_kv_tokens_taken / disagg_kv_tokens", self._engines.kv_taken)
        yield self._gauge(
            "sglang:gen_throughput", "Output tokens a second since the last scrape", self._tokens_a_second()
        )
        yield self._counter("sglang:prompt_tokens", "Prompt tokens", self._tokens("prompt"))
        yield self._counter("sglang:generation_tokens", "Output tokens", self._tokens("output"))
        yield self._counter("sglang:cached_tokens", "Prompt tokens that engines had cached", self._cached())
        yield self._counter("sglang:num_requests", "Requests that finished", self._phase("finished"))
        yield self._counter("sglang:num_aborted_requests", "Requests whose client left", self._phase("cancelled"))

    def _vllm(self) -> Iterator[Metric]:
        live, queued = self._live()
        yield self._gauge("vllm:num_requests_running", "Requests that run", live - queued)
        yield self._gauge("vllm:num_requests_waiting", "Requests that wait for a pair", queued)
        yield self._gauge("vllm:kv_cache_usage_perc", "The share of KV that is taken, 0 to 1", self._engines.kv_taken)
        yield self._counter("vllm:prompt_tokens", "Prompt tokens", self._tokens("prompt"))
        yield self._counter("vllm:generation_tokens", "Output tokens", self._tokens("output"))
        yield self._counter("vllm:prefix_cache_queries", "Prompt tokens", self._tokens("prompt"))
        yield self._counter("vllm:prefix_cache_hits", "Prompt tokens that engines had cached", self._cached())
        ended = CounterMetricFamily(
            "vllm:request_success", "Requests by why their answer ended", labels=["model_name", "finished_reason"]
        )
        reasons = self._counts["disagg_finished"].sums
        for reason in ("stop", "length"):
            ended.add_metric([self._labels["model_name"], reason], reasons.get((reason,), 0))
        ended.add_metric([self._labels["model_name"], "abort"], self._phase("cancelled"))
        yield ended

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, text, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

    def _live(self) -> tuple[float, float]:
        return self._now("requests"), self._now("queued")

    def _now(self, key: str) -> float:
        return next(sample.value for metric in self._gauges[key].collect() for sample in metric.samples)

    def _tokens(self, kind: str) -> int:
        return sum(count for labels, count in self._counts["disagg_rank_tokens"].sums.items() if labels[-1] == kind)

    def _cached(self) -> int:
        return self._counts["disagg_prompt_tokens_cached"].sums.get(("engine",), 0)

    def _phase(self, phase: str) -> int:
        return self._counts["disagg_requests"].sums.get((phase,), 0)

    def _tokens_a_second(self) -> float:
        now_s, tokens = time.monotonic(), self._tokens("output")
        before_s, before = self._before
        if now_s - before_s >= RATE_S:
            self._rate = max(0, tokens - before) / (now_s - before_s)
            self._before = now_s, tokens
        return self._rate
