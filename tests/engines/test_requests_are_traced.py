"""`disagg serve` with telemetry.traces: what a collector gets of a stream whose (simulated) engine is killed."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import httpx
from deployment import serving
from streams import wait_until

sys.path.insert(1, str(Path(__file__).parent.parent / "telemetry"))  # tests share collector.py

from collector import collector

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_a_stream_that_moves_is_one_trace() -> None:
    with (
        collector() as there,
        serving("configs/simulated.yaml", "ray.address=local", f"telemetry.traces={{endpoint: '{there.url}'}}") as d,
    ):
        body = {"model": "smollm2", "prompt": [5, 6, 8], "max_tokens": 200, "ignore_eos": True, "stream": True}
        head = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
        url = f"{d.url}/v1/completions"
        with httpx.stream("POST", url, json=body, headers=head, timeout=60, trust_env=False) as answer:
            request_id = answer.headers["x-request-id"]
            lines = answer.iter_lines()
            for _ in range(10):
                next(lines)
            decode = d.get(f"/disagg/requests/{request_id}")["decode"].partition("#")[0]
            os.kill(d.engine(decode)["pids"]["host"], signal.SIGKILL)
            assert list(lines)[-2:] == ["data: [DONE]", ""]
        spans = there.wait(TRACE, 12)
        (root,) = [span for span in spans if span.name == "text_completion smollm2"]
        assert (root.parent, root.service) == (SPAN, "simulated")
        assert root.attributes["gen_ai.response.id"] == request_id
        tries = [span for span in spans if span.name == "try"]
        assert sorted((span.attributes["disagg.try"], span.failed) for span in tries) == [(1, True), (2, False)]
        for name in ("queue", "prefill leg", "bootstrap", "prefill", "transfer", "decode leg"):
            assert len([span for span in spans if span.name == name]) == 2, (name, [span.name for span in spans])
        moved = max((span for span in spans if span.name == "transfer"), key=lambda span: span.begin_s)
        assert moved.attributes["disagg.kv_bytes"] > 0
        ids = {span.span_id for span in spans} | {SPAN}
        assert all(span.parent in ids for span in spans)

        unsaid = len(there.spans)
        httpx.post(url, json=body | {"stream": False}, timeout=60, trust_env=False)  # one of a hundred is sampled
        told = httpx.get(f"{d.url}/metrics", timeout=5, trust_env=False).text
        assert f'disagg_trace_spans_total{{outcome="sent"}} {len(spans)}.0' in told
        assert len(there.spans) == unsaid or len(there.spans) > unsaid + 5
        wait_until(lambda: d.is_ready(), 30)
