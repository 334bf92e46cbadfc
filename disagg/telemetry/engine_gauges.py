"""Engines and their ranks as they are now, for Prometheus.

Way:   Service, at each GET /metrics: records of the registry, endpoints -> [EngineGauges] -> prometheus_client
Owns:  nothing between two looks. A series an engine, or a rank of it: an engine that comes back has the same ones
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from disagg.registry.records import EngineRecord
from disagg.role_table import ROLES
from disagg.routing.endpoints import UNBOUNDED, Endpoint, Engine

OF_ENGINE = ("engine", "role")
OF_RANK = ("engine", "dp_rank")


class EngineGauges(Collector):
    def __init__(self, registry: CollectorRegistry) -> None:
        self._records: Collection[EngineRecord] = ()
        self._engines: Collection[Engine] = ()
        registry.register(self)

    def look(self, records: Collection[EngineRecord], engines: Collection[Engine]) -> None:
        """`records`: all engines; `engines`: those that this frontend is connected to."""
        self._records, self._engines = records, engines

    @property
    def kv_taken(self) -> float:
        """The share of KV that is taken, over all ranks that make tokens."""
        taken, there = 0, 0
        for endpoint in self._endpoints():
            if not ROLES[endpoint.engine.role].embeds and _is_known(endpoint):
                taken, there = taken + max(0, endpoint.load[1]), there + endpoint.capacity.kv_tokens
        return taken / there if there else 0.0

    def _endpoints(self) -> Iterator[Endpoint]:
        return (endpoint for engine in self._engines for endpoint in engine.endpoints)

    def collect(self) -> Iterator[Metric]:
        state = GaugeMetricFamily("disagg_engine_state", "1 for the state that it is in", labels=(*OF_ENGINE, "state"))
        restarts = GaugeMetricFamily("disagg_engine_restarts", "How often it was started again", labels=OF_ENGINE)
        info = GaugeMetricFamily(
            "disagg_engine_info",
            "1; where it is, and what its KV goes by",
            labels=(*OF_ENGINE, "node", "lane", "device"),
        )
        for record in self._records:
            of_engine = record.id, record.role.value
            state.add_metric([*of_engine, record.state.value], 1)
            restarts.add_metric(of_engine, record.restarts)
            device = "gpu" if record.devices else "cpu"
            info.add_metric([*of_engine, record.node, record.lane or "unknown", device], 1)
        kv = GaugeMetricFamily("disagg_kv_tokens", "KV tokens that a rank has in all", labels=OF_RANK)
        used = GaugeMetricFamily("disagg_kv_tokens_taken", "Of these, what requests were granted", labels=OF_RANK)
        batch = GaugeMetricFamily("disagg_rank_requests", "Requests that run or wait on a rank", labels=OF_RANK)
        unread = GaugeMetricFamily("disagg_rank_unread_tokens", "Prompt tokens that wait to be read", labels=OF_RANK)
        for endpoint in self._endpoints():
            of_rank = endpoint.engine.id, str(endpoint.dp_rank)
            if _is_known(endpoint):
                kv.add_metric(of_rank, endpoint.capacity.kv_tokens)
            used.add_metric(of_rank, max(0, endpoint.load[1]))
            batch.add_metric(of_rank, endpoint.requests_of_clients)
            unread.add_metric(of_rank, max(0, endpoint.sent_tokens))
        yield from (state, restarts, info, kv, used, batch, unread)


def _is_known(endpoint: Endpoint) -> bool:
    """Whether its engine tells how much KV it has."""
    return endpoint.capacity.kv_tokens < UNBOUNDED
