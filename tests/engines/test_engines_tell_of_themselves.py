"""Real engines that are asked to: SGLang's own metrics at a frontend, and its own spans below ours."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx
from deployment import Deployment, light, serving
from prometheus_client.parser import text_string_to_metric_families

sys.path.insert(1, str(Path(__file__).parent.parent / "telemetry"))  # tests share collector.py

from collector import Collector, Got, collector

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
BYTES_MAX = 200_000  # of an engine of one rank
SERIES_MAX = 800


def test_one_request_is_one_tree_of_our_spans_and_sglangs_and_its_engines_count_it() -> None:
    with collector() as there:
        traces = f"telemetry.traces={{endpoint: '{there.url}', engines: true}}"
        sets = ("ray.address=local", *light(), "telemetry.engine_metrics=true", traces)
        with serving("configs/local-cpu.yaml", *sets) as d:
            _traced(d, there)
            _counted(d)


def _traced(d: Deployment, there: Collector) -> None:
    body = {"model": "smollm2", "prompt": [5, 6, 8] * 20, "max_tokens": 4, "ignore_eos": True}
    head = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
    answer = httpx.post(f"{d.url}/v1/completions", json=body, headers=head, timeout=120, trust_env=False)
    assert answer.status_code == 200, answer.text
    d.wait_until(lambda: {"decode_forward", "transfer"} <= {span.name for span in there.of(TRACE)}, 60)
    d.wait_until(lambda: not _orphans(there.of(TRACE)), 30)
    spans = there.of(TRACE)
    (root,) = [span for span in spans if span.parent == SPAN]
    assert root.name == "text_completion smollm2"
    for leg, of_sglang in (
        ("prefill leg", ("prefill_bootstrap", "prefill_forward", "prefill_transfer_kv_cache")),
        ("decode leg", ("decode_transferred", "decode_forward")),
    ):
        (ours,) = [span for span in spans if span.name == leg]
        below = _below(spans, ours)
        assert {span.name for span in below if span.service == "sglang"} >= {*of_sglang}
        (request,) = [span for span in below if span.parent == ours.span_id and span.service == "sglang"]
        assert request.attributes["rid"].startswith(answer.headers["x-request-id"])
    assert {span.trace_id for span in there.spans} == {TRACE}, "of canaries, or of other requests"


def _orphans(spans: list[Got]) -> list[str]:
    ids = {span.span_id for span in spans} | {SPAN}
    return [span.name for span in spans if span.parent not in ids]


def _below(spans: list[Got], top: Got) -> list[Got]:
    children = [span for span in spans if span.parent == top.span_id]
    return children + [each for child in children for each in _below(spans, child)]


def _counted(d: Deployment) -> None:
    text = httpx.get(f"{d.url}/metrics/engines", timeout=30, trust_env=False).text
    found = {each.name: each for each in text_string_to_metric_families(text)}
    samples = [sample for each in found.values() for sample in each.samples]
    assert {sample.labels["engine"]: sample.value for sample in found["disagg_engine_metrics"].samples} == {
        "prefill-0": 1,
        "decode-0": 1,
    }
    of_sglang = [sample for sample in samples if sample.name.startswith("sglang:")]
    told = {(s.labels["engine"], s.labels["role"], s.labels["model"]) for s in of_sglang}
    assert told == {("prefill-0", "prefill", "smollm2"), ("decode-0", "decode", "smollm2")}
    assert len({(s.name, *sorted(s.labels.items())) for s in samples}) == len(samples)
    for name in ("sglang:num_running_reqs", "sglang:token_usage"):
        assert {sample.labels["tp_rank"] for sample in found[name].samples} == {"0"}
    assert sum(sample.value for sample in found["sglang:kv_transfer_latency_ms"].samples if "_count" in sample.name) > 0
    assert len(samples) < 2 * SERIES_MAX
    assert len(text) < 2 * BYTES_MAX
    assert "/smollm2" not in text, "a folder of the machine"
    (_, *one) = httpx.get(f"{d.url}/metrics/engines?engine=decode-0", timeout=30, trust_env=False).text.splitlines()
    assert one
    assert "prefill-0" not in "".join(one)
