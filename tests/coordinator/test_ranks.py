"""The dp rank is the unit: of routing, of what is in flight, and of the metrics."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # tests share bench.py; they are not a package

import msgspec
from bench import bench, request, until
from prometheus_client import generate_latest

from disagg.process.stub import FACTS, StubEngine
from disagg.routing.endpoints import RankId
from disagg.routing.policies.least_loaded import Weighed
from disagg.routing.policies.predicted import LeastCost
from disagg.telemetry.metrics import Figures, FrontendMetrics


def _two_ranks() -> StubEngine:
    return StubEngine(hold=True, facts=msgspec.structs.replace(FACTS, ranks=2))


async def test_requests_go_to_all_ranks_and_are_counted_on_them() -> None:
    async with bench(prefill=_two_ranks(), decode=_two_ranks()) as b:
        answering = [b.start(request()) for _ in range(3)]
        await until(lambda: len(b.decode.legs) == len(b.prefill.legs) == 3)
        assert b.router.connections.in_flight("prefill-0#1") == b.router.connections.in_flight("decode-0#1") == [2, 1]
        assert Counter(leg.dp_rank for leg in b.decode.legs) == {0: 2, 1: 1}
        for leg in b.prefill.legs + b.decode.legs:
            assert leg.bootstrap is not None
            assert leg.bootstrap.room % 2 == leg.bootstrap.prefill_dp_rank
        assert [leg.bootstrap.prefill_dp_rank for leg in b.prefill.legs if leg.bootstrap] == [
            leg.dp_rank for leg in b.prefill.legs
        ]
        b.prefill.release()
        b.decode.release()
        await asyncio.gather(*answering)
        assert b.router.connections.in_flight("prefill-0#1") == b.router.connections.in_flight("decode-0#1") == [0, 0]


async def test_an_engine_that_is_gone_has_nothing_in_flight() -> None:
    async with bench() as b:
        assert b.router.connections.in_flight("decode-0#7") == []


def _told(metrics: FrontendMetrics, *others: Figures) -> str:
    return generate_latest(metrics.up_to_date(metrics.figures({}, {}), others, {}, granted={}, caches={})).decode()


def test_metrics_of_several_frontends_are_told_by_frontend() -> None:
    here = FrontendMetrics("m", frontend=0, aliases=["sglang"])
    there = FrontendMetrics("m", frontend=1)
    for metrics in (here, there, there):
        of = request()
        of.timeline["first_token"] = of.received_at_s + 0.2
        metrics.ended(of)
    figures = msgspec.msgpack.decode(msgspec.msgpack.encode(there.figures({"requests": 3}, {"late": 2})), type=Figures)
    own = here.figures({"requests": 1}, {"late": 1})
    text = generate_latest(here.up_to_date(own, [figures], {"engines": 5}, granted={}, caches={})).decode()
    for frontend, count in ((0, 1.0), (1, 2.0)):
        assert f'disagg_requests_total{{frontend="{frontend}",phase="queued"}} {count}' in text
        assert f'disagg_ttft_seconds_bucket{{frontend="{frontend}",le="0.25"}} {count}' in text
        assert f'disagg_ttft_seconds_count{{frontend="{frontend}"}} {count}' in text
        assert f'disagg_refused_total{{frontend="{frontend}",reason="late"}} {count}' in text
    assert "\ndisagg_requests_live 4.0" in text
    assert "\ndisagg_engines 5.0" in text
    assert 'sglang:time_to_first_token_seconds_count{model_name="m"} 3.0' in text
    lone = _told(here)  # the other one does not answer: its series are away, and no sum has fallen
    assert 'disagg_requests_total{frontend="0",phase="queued"} 1.0' in lone
    assert 'frontend="1"' not in lone


def test_one_frontend_alone_has_no_number() -> None:
    metrics = FrontendMetrics()
    metrics.ended(request())
    text = _told(metrics)
    assert 'disagg_requests_total{phase="queued"} 1.0' in text
    assert "frontend=" not in text


def test_metrics_tell_which_ranks_served_a_request_and_which_sent_its_kv() -> None:
    metrics, of = FrontendMetrics(), request()
    of.facts.prefill, of.facts.decode = RankId("prefill-0", "prefill-0#2", 1), RankId("decode-3", "decode-3#1", 0)
    of.facts.kv_bytes = 4096
    metrics.ended(of)
    metrics.ended(request())  # it never came to an engine
    text = _told(metrics)
    served = [line for line in text.splitlines() if line.startswith("disagg_requests_served_total")]
    assert served == [
        'disagg_requests_served_total{dp_rank="1",engine="prefill-0"} 1.0',
        'disagg_requests_served_total{dp_rank="0",engine="decode-3"} 1.0',
    ]
    assert 'disagg_kv_transfer_bytes_total{dp_rank="1",engine="prefill-0"} 4096.0' in text


def test_an_aggregated_engine_counts_once() -> None:
    metrics, of = FrontendMetrics(), request()
    of.facts.decode = RankId("aggregated-0", "aggregated-0#1", 0)
    metrics.ended(of)
    text = _told(metrics)
    assert text.count("\ndisagg_requests_served_total{") == 1
    assert "\ndisagg_kv_transfer_bytes_total{" not in text


def test_metrics_tell_why_requests_went_where_they_did_and_how_well_caches_were_known() -> None:
    metrics = FrontendMetrics()
    pair, alone = request(), request()
    for of in (pair, alone):
        of.facts.decode, of.facts.cached_tokens = RankId("engine-0", "engine-0#1", 0), 100
    pair.facts.prefill = RankId("prefill-0", "prefill-0#1", 0)
    pair.facts.routed = LeastCost(wait_ms=1, read_ms=1, transfer_ms=1, itl_ms=1, cost_ms=5, cached_tokens=128)
    alone.facts.routed = Weighed(0, 0, 0)
    for of in (pair, pair, alone):
        metrics.ended(of)
    text = _told(metrics)
    assert 'disagg_routed_total{reason="LeastCost",to="pair"} 2.0' in text
    assert 'disagg_routed_total{reason="Weighed",to="one engine"} 1.0' in text
    assert 'disagg_prompt_tokens_cached_total{by="routing"} 256.0' in text
    assert 'disagg_prompt_tokens_cached_total{by="engine"} 300.0' in text
