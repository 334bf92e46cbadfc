"""What /metrics tells beside counts of requests: durations, lanes, ranks, engines; and other servers' names."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry, generate_latest

sys.path.insert(0, str(Path(__file__).parent.parent / "coordinator"))  # tests share bench.py; they are not a package
sys.path.insert(1, str(Path(__file__).parent.parent / "frontend"))  # and many_engines.py

from bench import request
from many_engines import ManyEngines
from prometheus_client.parser import text_string_to_metric_families

from disagg.coordinator.facts import Failure
from disagg.coordinator.phases import Phase
from disagg.coordinator.request import Request
from disagg.frontend.http1.refusals import CODES_MAX, Refusals
from disagg.plane.ledger import Capacity
from disagg.routing.endpoints import UNBOUNDED, RankId
from disagg.telemetry.aliases import HISTOGRAMS, KINDS
from disagg.telemetry.bounds import FINE, SGLANG_FIRST, VLLM_STEP
from disagg.telemetry.metrics import Figures, FrontendMetrics
from disagg.telemetry.of_models import render
from disagg.telemetry.tallies import Durations

DOCS = Path(__file__).resolve().parents[2] / "docs" / "telemetry.md"
P0, D0, D1 = RankId("prefill-0", "prefill-0#2", 1), RankId("decode-0", "decode-0#1", 0), RankId("decode-1", "d#1", 0)


def _metrics(*aliases: str) -> FrontendMetrics:
    return FrontendMetrics("m", {"prefill-0": "rdma"}.get, aliases)  # type: ignore[arg-type]


def _request(tokens: int = 0, **timeline: float) -> Request:
    """Its times are seconds since it was received."""
    of = request(max_tokens=100)
    of.facts.prefill, of.facts.decode, of.phase = P0, D0, Phase.FINISHED
    of.emitted_ids += [7] * tokens
    of.timeline |= {name: of.received_at_s + at_s for name, at_s in timeline.items()}
    return of


def _told(metrics: FrontendMetrics, *others: Figures, **told: Any) -> dict[str, float]:
    """Each sample as Prometheus writes it -> its value."""
    text = generate_latest(
        metrics.up_to_date(metrics.figures({"requests": 3, "queued": 1}, {}, told), others, {}, {}, {})
    ).decode()
    samples = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in samples}


def test_where_a_requests_time_went() -> None:
    metrics = _metrics()
    of = _request(11, tokenised=0.1, admitted=0.4, prefill_start=0.5, prefill_end=1.5, first_token=2.0)
    of.facts.kv_bytes, of.facts.kv_transfer_s, of.token_at_s = 5000, 0.25, of.received_at_s + 3.0
    metrics.ended(of)
    told = _told(metrics)
    sums = {name: told[f"disagg_{name}_seconds_sum"] for name in ("queue", "prefill", "kv_transfer", "tpot", "ttft")}
    assert sums == pytest.approx({"queue": 0.3, "prefill": 1.0, "kv_transfer": 0.25, "tpot": 0.1, "ttft": 2.0})
    assert told['disagg_kv_lane_bytes_total{lane="rdma"}'] == 5000
    assert told['disagg_kv_lane_transfers_total{lane="rdma"}'] == 1


def test_prefills_last_word_may_come_after_the_answer() -> None:
    metrics, of = _metrics(), _request(1, first_token=1.0)
    metrics.ended(of)
    assert 'disagg_kv_lane_bytes_total{lane="rdma"}' not in _told(metrics)
    of.facts.kv_bytes, of.facts.kv_transfer_s = 5000, 0.25
    of.timeline |= {"prefill_start": 1.0, "prefill_end": 3.0}
    for _ in range(2):  # once
        told = _told(metrics)
        assert told['disagg_kv_transfer_bytes_total{dp_rank="1",engine="prefill-0"}'] == 5000
        assert told["disagg_prefill_seconds_sum"] == 2.0


def test_a_word_that_never_comes_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = _metrics()
    metrics.ended(_request(1, prefill_start=1.0, prefill_end=2.0))
    later_s = time.monotonic() + 60
    monkeypatch.setattr("disagg.telemetry.metrics.time.monotonic", lambda: later_s)
    assert _told(metrics)["disagg_prefill_seconds_count"] == 1
    assert not metrics._late


def test_where_too_many_words_are_waited_for_the_oldest_is_counted_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("disagg.telemetry.metrics.LATE_MAX", 2)
    metrics = _metrics()
    for _ in range(5):
        metrics.ended(_request(1, prefill_start=1.0, prefill_end=2.0))
    assert len(metrics._late) == 2
    assert _told(metrics)["disagg_prefill_seconds_count"] == 3


def test_a_rank_that_makes_vectors_has_read_its_prompts() -> None:
    metrics, of, lost = _metrics(), _request(), _request()
    for each in (of, lost):
        each.embeds, each.facts.prefill = True, None
    metrics.look([of])
    of.embedding = b"1234"
    metrics.ended(of)
    metrics.ended(lost)
    told = _told(metrics)
    assert told['disagg_rank_tokens_total{dp_rank="0",engine="decode-0",kind="prompt"}'] == 3
    assert 'disagg_rank_tokens_total{dp_rank="0",engine="decode-0",kind="output"}' not in told
    assert not metrics._counted


def test_a_rank_of_unknown_size_has_no_series_of_it() -> None:
    metrics, there = _metrics("sglang"), ManyEngines(16)
    engines = there.engines
    for endpoint in (endpoint for engine in engines for endpoint in engine.endpoints):
        endpoint.capacity = Capacity(UNBOUNDED, UNBOUNDED, 1)
    metrics.engines.look(there.records.values(), engines)
    told = _told(metrics)
    assert 'disagg_rank_requests{dp_rank="7",engine="decode-0"}' in told
    assert not any(name.startswith("disagg_kv_tokens{") for name in told)
    assert told['sglang:token_usage{model_name="m"}'] == 0


def test_tokens_of_a_rank_grow_while_a_stream_runs_and_never_shrink() -> None:
    metrics, of = _metrics(), _request(10)
    rank = 'disagg_rank_tokens_total{{dp_rank="0",engine="{}",kind="output"}}'.format
    metrics.look([of])
    metrics.look([of])
    told = _told(metrics)
    assert told[rank("decode-0")] == 10
    assert told['disagg_rank_tokens_total{dp_rank="1",engine="prefill-0",kind="prompt"}'] == 3
    of.facts.decode = D1  # it moved
    of.emitted_ids += [7] * 5
    metrics.ended(of)
    told = _told(metrics)
    assert (told[rank("decode-0")], told[rank("decode-1")]) == (10, 5)
    assert not metrics._counted


def test_how_requests_ended() -> None:
    metrics = _metrics()
    cut, whole, failed = _request(100), _request(5), _request()
    failed.phase, failed.facts.error = Phase.FAILED, Failure("NoReadyPair", "none", "here")
    for of in (cut, whole, failed):
        metrics.ended(of)
    told = _told(metrics, disagg_errors={("no_ready_pair",): 1})
    assert told['disagg_finished_total{reason="length"}'] == 1
    assert told['disagg_finished_total{reason="stop"}'] == 1
    assert told['disagg_failed_total{error="NoReadyPair"}'] == 1
    assert told['disagg_errors_total{code="no_ready_pair"}'] == 1


def test_codes_of_errors_are_bounded() -> None:
    refusals = Refusals()
    for number in range(CODES_MAX + 50):
        refusals.add_error(f"code {number}")
    refusals.add_error("code 3")
    assert len(refusals.errors) == CODES_MAX + 1
    assert (refusals.errors["other"], refusals.errors["code 3"]) == (50, 2)


def test_engines_and_ranks_as_they_are() -> None:
    metrics, there = _metrics("sglang"), ManyEngines(64)
    metrics.engines.look(there.records.values(), there.engines)
    told = _told(metrics)
    assert told['disagg_engine_state{engine="prefill-1",role="prefill",state="ready"}'] == 1
    assert told['disagg_engine_restarts{engine="decode-0",role="decode"}'] == 0
    assert told['disagg_kv_tokens{dp_rank="7",engine="decode-0"}'] == 1e6
    assert 0 < told['disagg_kv_tokens_taken{dp_rank="7",engine="decode-0"}'] < 1e6
    assert 0 < told['sglang:token_usage{model_name="m"}'] < 1


def test_series_do_not_grow_with_requests_nor_with_restarts() -> None:
    metrics = _metrics(*KINDS)
    sizes = set()
    for life in range(1, 5):
        for _ in range(20):
            of = _request(3, first_token=life)
            of.facts.prefill, of.facts.decode = P0._replace(life=f"p#{life}"), D0._replace(life=f"d#{life}")
            of.facts.kv_bytes, of.adapter = 1, f"adapter-{life}"
            metrics.ended(of)
        sizes.add(len(_told(metrics)))
    assert len(sizes) == 1


def test_frontends_are_added_under_every_name() -> None:
    here, there = _metrics(*KINDS), _metrics()
    for metrics in (here, there, there):
        of = _request(10, tokenised=0.0, admitted=0.15, first_token=0.3)
        of.facts.cached_tokens, of.facts.kv_bytes, of.token_at_s = 2, 7, of.received_at_s + 1.2
        metrics.ended(of)
    far = msgspec.msgpack.decode(msgspec.msgpack.encode(there.figures({"requests": 4, "queued": 2}, {})), type=Figures)
    told = _told(here, far)
    model = '{model_name="m"}'
    assert told[f"sglang:num_queue_reqs{model}"] == told[f"vllm:num_requests_waiting{model}"] == 3
    assert told[f"sglang:num_running_reqs{model}"] == told[f"vllm:num_requests_running{model}"] == 4
    assert told[f"sglang:generation_tokens_total{model}"] == told[f"vllm:generation_tokens_total{model}"] == 30
    assert told[f"sglang:prompt_tokens_total{model}"] == told[f"vllm:prefix_cache_queries_total{model}"] == 9
    assert told['sglang:time_to_first_token_seconds_bucket{le="0.2",model_name="m"}'] == 0
    assert told['sglang:time_to_first_token_seconds_bucket{le="0.4",model_name="m"}'] == 3
    assert told['vllm:request_time_per_output_token_seconds_bucket{le="0.15",model_name="m"}'] == 3
    assert told['vllm:request_success_total{finished_reason="stop",model_name="m"}'] == 3
    otel = '{gen_ai_provider_name="disagg",gen_ai_request_model="m"}'
    assert told[f"gen_ai_server_time_to_first_token_seconds_count{otel}"] == 3
    assert told[f"sglang:gen_throughput{model}"] == 0.0  # less than a second has passed


def test_of_several_models_what_is_the_processs_own_is_told_once() -> None:
    told: Any = {"disagg_errors": {("late",): 2}, "disagg_key_requests": {("team-a",): 3}}
    models = {name: FrontendMetrics(name) for name in ("a", "b")}
    text = render(
        {name: each.up_to_date(each.figures({}, {}, told), [], {}, {}, {}) for name, each in models.items()}
    ).decode()
    assert 'disagg_errors_total{code="late"} 2.0' in text
    assert 'disagg_key_requests_total{key="team-a"} 3.0' in text
    assert 'disagg_queue_seconds_count{model="b"} 0.0' in text


def test_each_name_has_the_buckets_that_its_boards_expect() -> None:
    told = _told(_metrics(*KINDS))
    for name, bounds in (
        ("sglang:time_to_first_token_seconds", SGLANG_FIRST),
        ("vllm:request_time_per_output_token_seconds", VLLM_STEP),
    ):
        found = [re.search(r'le="([^"]+)"', sample) for sample in told if sample.startswith(f"{name}_bucket")]
        assert [each[1] for each in found if each] == [*(str(float(bound)) for bound in bounds), "+Inf"]


@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.10001, 1e9])
def test_a_duration_is_in_the_same_place_by_every_name(seconds: float) -> None:

    durations = Durations(CollectorRegistry(), (0.1,), "x", "")
    durations.add(seconds)
    durations.told = [(None, durations.own)]
    for bounds in [(0.1,), FINE, *(bounds for kind in KINDS for _, bounds in HISTOGRAMS[kind].values())]:
        for sample in durations.family("y", "", bounds).samples:
            if sample.name == "y_bucket":
                assert sample.value == (seconds <= float(sample.labels["le"])), sample


def test_without_aliases_there_are_only_our_names() -> None:
    assert {name.partition("_")[0] for name in _told(_metrics())} == {"disagg"}


def test_the_page_has_every_name_and_no_other() -> None:
    metrics = _metrics(*KINDS)
    text = generate_latest(metrics.up_to_date(metrics.figures({}, {}), [], {}, {}, {})).decode()
    told = {
        family.name + ("_total" if family.type == "counter" else "") for family in text_string_to_metric_families(text)
    }
    page, _, of_engines = DOCS.read_text().partition("### SGLang's own")
    page += of_engines[of_engines.index("\n## ") :]  # what is theirs is not ours
    on_page = set(re.findall(r"`((?:disagg|sglang|vllm|gen_ai_server)[_:]\w+?)(?:_total)?(?:\{[^`]*\})?`", page))
    names = {name.removesuffix("_total") for name in told}
    assert names - on_page == set()
    assert {name for name in on_page if "gen_ai" not in name} - names - {"disagg_start"} == set()
