"""A span tree a request, over OTLP: what is in it, who decides whether there is one, what a dead collector costs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests share collector.py; they are not a package
sys.path.insert(1, str(Path(__file__).parent.parent / "coordinator"))  # and bench.py

from bench import bench, request, until
from collector import Collector, Got, collector

from disagg.coordinator.limits import Limits
from disagg.coordinator.request import Request
from disagg.errors import LegLost
from disagg.plane.engine import Leg, LegSink
from disagg.plane.messages import pack_ids
from disagg.process.stub import StubEngine
from disagg.telemetry.traces.http_trace import HttpTrace
from disagg.telemetry.traces.otlp import exporter
from disagg.telemetry.traces.sender import BATCH_MAX, Sender
from disagg.telemetry.traces.tracer import Tracer
from disagg.telemetry.traces.tree import Span, spans_of
from disagg.telemetry.traces.w3c import read_parent

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{SPAN}-01".encode()
UNSAMPLED = f"00-{TRACE}-{SPAN}-00".encode()


class Heard(StubEngine):
    """Keeps the traceparent of each leg."""

    def __init__(self, **how: object) -> None:
        super().__init__(step_s=0.01, token=None, **how)  # type: ignore[arg-type]
        self.parents: list[str] = []

    def submit(self, leg: Leg, sink: LegSink) -> object:
        self.parents.append(leg.trace)
        return super().submit(leg, sink)


def _tracer(ratio: float = 0.0, url: str = "http://127.0.0.1:9/v1/traces", **how: object) -> tuple[Tracer, Sender]:
    export = exporter(url, {"x-key": "k"}, 3, "mine")
    sender = Sender("m", export, settle_s=0.0, **how)  # type: ignore[arg-type]
    return Tracer(sender, ratio), sender


def _traced(tracer: Tracer, parent: bytes | None, **how: int) -> tuple[HttpTrace, Request]:
    http = tracer.begin("/v1/chat/completions", parent)
    r = request(**how)
    r.mark("tokenised", time.monotonic())
    r.trace = http.request()
    return http, r


def _by_name(spans: list[Got]) -> dict[str, Got]:
    assert max(Counter(span.name for span in spans).values()) == 1
    return {span.name: span for span in spans}


def _sent(sender: Sender, there: Collector) -> list[Got]:
    sender.send_due(all_of_them=True)
    return there.of(TRACE)


async def test_a_request_on_a_pair_is_one_tree_under_its_clients_span_and_its_legs_carry_it_on() -> None:
    decode = Heard()
    with collector() as there:
        tracer, sender = _tracer(url=f"{there.url}/v1/traces")
        async with bench(limits=Limits(), decode_0=decode, prefill_0=(prefill := Heard())) as b:
            http, r = _traced(tracer, SAMPLED, max_tokens=5)
            await b.answer(r)
            await b.settle()
            http.end(200, "")
        spans = _by_name(await asyncio.to_thread(_sent, sender, there))
    root, tried = spans["chat m"], spans["try"]
    assert (root.parent, root.kind, root.service) == (SPAN, 2, "mine")
    assert [spans[name].parent for name in ("tokenise", "request")] == [root.span_id] * 2
    assert spans["queue"].parent == tried.parent == spans["request"].span_id
    assert spans["prefill leg"].parent == spans["decode leg"].parent == tried.span_id
    assert prefill.parents == [f"00-{TRACE}-{spans['prefill leg'].span_id}-01"]
    assert decode.parents == [f"00-{TRACE}-{spans['decode leg'].span_id}-01"]
    assert all(root.begin_s - 1e-3 <= span.begin_s <= span.end_s for span in spans.values())
    assert spans["queue"].events == ["reserved"]
    assert "first_token" in spans["decode leg"].events
    assert root.attributes["gen_ai.operation.name"] == "chat"
    assert root.attributes["gen_ai.usage.output_tokens"] == 5
    assert root.attributes["gen_ai.response.id"] == r.id
    assert tried.attributes["disagg.pair"] == "prefill-0#1/0 + decode-0#1/0"
    assert there.paths == ["/v1/traces"]
    assert there.headers[0]["x-key"] == "k"


async def test_a_migration_is_a_second_try_in_the_same_tree() -> None:
    with collector() as there:
        tracer, sender = _tracer(url=f"{there.url}/v1/traces")
        async with bench(limits=Limits(), decode_0=Heard(), decode_1=Heard()) as b:
            http, r = _traced(tracer, SAMPLED, max_tokens=60)
            answering = b.start(r)
            await until(lambda: len(r.emitted_ids) >= 10)
            victim = next(n for n, e in b.engines.items() if n.startswith("decode") and any(e.running(r.id)))
            b.servers[victim].close()
            await asyncio.wait_for(answering, 30)
            http.end(200, "")
        spans = await asyncio.to_thread(_sent, sender, there)
    (whole,) = [span for span in spans if span.name == "request"]
    tries = sorted((span for span in spans if span.name == "try"), key=lambda span: span.begin_s)
    assert [span.attributes["disagg.try"] for span in tries] == [1, 2]
    assert [span.failed for span in tries] == [True, False]
    assert victim in tries[0].attributes["disagg.pair"]
    assert victim not in tries[1].attributes["disagg.pair"]
    assert len([span for span in spans if span.name == "queue"]) == 2
    assert len([span for span in spans if span.name == "decode leg"]) == 2
    assert "migrate" in whole.events
    assert whole.attributes["disagg.tries"] == 2


async def test_a_failed_request_has_its_error() -> None:
    with collector() as there:
        tracer, sender = _tracer(url=f"{there.url}/v1/traces")
        async with bench(limits=Limits(retry_limit=0), decode_0=StubEngine(hold=True)) as b:
            http, r = _traced(tracer, SAMPLED)
            answering = b.start(r)
            await until(lambda: b.decode.legs)
            b.servers["decode-0"].close()
            with pytest.raises(LegLost):
                await answering
            http.end(503, "leg_lost")
        spans = _by_name(await asyncio.to_thread(_sent, sender, there))
    assert spans["chat m"].failed
    assert spans["chat m"].attributes["error.type"] == "leg_lost"
    assert spans["chat m"].attributes["http.response.status_code"] == 503
    assert spans["request"].failed


async def test_a_refused_body_is_a_span_alone() -> None:
    with collector() as there:
        tracer, sender = _tracer(url=f"{there.url}/v1/traces")
        tracer.begin("/v1/embeddings", SAMPLED).end(400, "invalid_value")
        (span,) = await asyncio.to_thread(_sent, sender, there)
    assert (span.name, span.failed) == ("embeddings m", False)  # a client's mistake is no error of a server's span


async def test_where_it_is_not_sampled_nothing_is_noted_and_engines_hear_so() -> None:
    tracer, sender = _tracer()
    async with bench(limits=Limits(), decode_0=(decode := Heard())) as b:
        http, r = _traced(tracer, UNSAMPLED)
        await b.answer(r)
        http.end(200, "")
    assert r.trace is not None
    assert (r.trace.moments, r.trace.tries) == ([], [])
    assert decode.parents[0].startswith(f"00-{TRACE}-")
    assert decode.parents[0].endswith("-00")
    sender.send_due(all_of_them=True)
    assert sender.told == {"sent": 0, "dropped": 0}


async def test_without_traces_legs_have_none() -> None:
    async with bench(limits=Limits(), decode_0=(decode := Heard())) as b:
        await b.answer(request())
    assert decode.parents == [""]


async def test_no_engine_is_to_tell_of_a_canary() -> None:
    async with bench(limits=Limits(), decode_0=(decode := Heard())) as b:
        client, leg = b.router.connections.clients["decode-0#1"], SimpleNamespace(on_end=lambda _end: None)
        of_leg = {"leg_id": "c" * 34, "prompt": pack_ids([1, 2]), "sampling": {"max_new_tokens": 1}}
        number = client.submit(leg, **of_leg, dp_rank=0, bootstrap=None, is_canary=True)  # type: ignore[arg-type]
        await until(lambda: decode.parents)
        client.abort(number)
    parent = read_parent(decode.parents[0].encode())
    assert parent is not None
    assert not parent.is_sampled


def test_the_ratio_decides_where_no_parent_does() -> None:
    sender = Sender("m", lambda _: True)
    tracer = Tracer(sender, 0.25, Random(1))
    sampled = [tracer.begin("/v1/completions", None).is_sampled for _ in range(4000)]
    assert 900 < sum(sampled) < 1100
    assert all(tracer.begin("/v1/completions", SAMPLED).is_sampled for _ in range(50))
    assert not any(Tracer(sender, 1.0).begin("/v1/completions", UNSAMPLED).is_sampled for _ in range(50))


@pytest.mark.parametrize(
    ("header", "is_valid"),
    [
        (SAMPLED, True),
        (f"cc-{TRACE}-{SPAN}-01-later".encode(), True),
        (f"00-{TRACE}-{SPAN}-01-more".encode(), False),
        (f"ff-{TRACE}-{SPAN}-01".encode(), False),
        (f"00-{'0' * 32}-{SPAN}-01".encode(), False),
        (f"00-{TRACE}-{'0' * 16}-01".encode(), False),
        (f"00-{TRACE.upper()}-{SPAN}-01".encode(), False),
        (b"\xff\xfe", False),
        (b"", False),
        (None, False),
    ],
)
def test_a_traceparent_is_valid_or_as_if_it_had_not_come(header: bytes | None, is_valid: bool) -> None:
    assert (read_parent(header) is not None) == is_valid


def _ended(tracer: Tracer) -> None:
    tracer.begin("/v1/completions", SAMPLED).end(200, "")


def test_a_collector_that_is_away_costs_a_counted_drop_and_nobody_waits() -> None:
    tracer, sender = _tracer(waiting_max=100)
    began_s = time.monotonic()
    for _ in range(150):
        _ended(tracer)
    assert time.monotonic() - began_s < 0.5
    assert tracer.told == {"sent": 0, "dropped": 50}
    sender.start()
    tracer.stop()
    assert tracer.told["sent"] == 0


def test_what_a_collector_refuses_is_dropped_and_the_next_batch_is_sent() -> None:
    with collector() as there:
        there.status = 400
        tracer, sender = _tracer(url=f"{there.url}/v1/traces")
        _ended(tracer)
        sender.send_due(all_of_them=True)
        assert tracer.told == {"sent": 0, "dropped": 1}
        there.status = 200
        _ended(tracer)
        sender.send_due(all_of_them=True)
        assert tracer.told == {"sent": 1, "dropped": 1}


def test_what_waits_is_bounded_by_requests_not_by_bodies() -> None:
    tracer, sender = _tracer(waiting_max=100)
    for _ in range(3):
        http = tracer.begin("/v1/embeddings", SAMPLED)
        for _ in range(63):
            http.request()
        http.end(200, "")
    assert tracer.told == {"sent": 0, "dropped": 64}
    exported: list[int] = []

    def export(spans: Sequence[tuple[str, Span]]) -> bool:
        exported.append(len(spans))
        return True

    sender = Sender("m", export, settle_s=0.0)
    for _ in range(2 * BATCH_MAX):
        http = Tracer(sender, 0.0).begin("/v1/embeddings", SAMPLED)
        http.request()
        http.end(200, "")
    sender.send_due(all_of_them=True)
    assert exported == [BATCH_MAX // 2] * 4


def test_a_trace_that_cannot_be_made_into_spans_is_dropped_and_the_thread_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with collector() as there:
        tracer, sender = _tracer(url=f"{there.url}/v1/traces")
        sender.start()
        for _ in range(2):
            http, r = _traced(tracer, SAMPLED)
            assert r.trace is not None
            r.trace.ended = SimpleNamespace(timeline=None)  # type: ignore[assignment]
            http.end(200, "")
        end_s = time.monotonic() + 10
        while tracer.told["dropped"] < 4 and time.monotonic() < end_s:
            time.sleep(0.01)
        _ended(tracer)
        assert len(there.wait(TRACE, 1)) == 1
        tracer.stop()
    assert tracer.told == {"sent": 1, "dropped": 4}
    assert caplog.text.count("traces that cannot be sent") == 1


@pytest.mark.parametrize(
    ("status", "error", "failed"),
    [
        (200, "", False),
        (200, "leg_lost", True),
        (503, "no_ready_pair", True),
        (404, "model_not_found", False),
        (0, "client_gone", True),
        (200, "client_gone", True),
        (429, "overloaded", False),
    ],
)
def test_which_answers_are_errors(status: int, error: str, failed: bool) -> None:
    """A stream's head has said 200 when it fails."""
    http = _tracer()[0].begin("/v1/chat/completions/", SAMPLED)
    http.end(status, error)
    (root,) = spans_of(http, "m")
    assert (bool(root.error), root.name) == (failed, "chat m")


def test_the_thread_sends_and_what_waits_at_the_end_is_sent_too() -> None:
    with collector() as there:
        tracer, sender = _tracer(url=f"{there.url}/v1/traces")
        sender.start()
        _ended(tracer)
        assert len(there.wait(TRACE, 1)) == 1
        _ended(tracer)
        tracer.stop()
        assert len(there.of(TRACE)) == 2


def test_a_request_that_never_got_a_pair_has_its_wait() -> None:
    tracer, _ = _tracer()
    http, r = _traced(tracer, SAMPLED)
    assert r.trace is not None
    r.mark("failure", time.monotonic())
    r.trace.ended = r.remembered()
    http.end(503, "no_ready_pair")
    assert [span.name for span in spans_of(http, "m")] == ["chat m", "tokenise", "request", "queue"]


def test_where_traces_are_off_opentelemetry_is_not_even_imported() -> None:
    program = "import sys, disagg.frontend.main; print([name for name in sys.modules if 'opentelemetry' in name])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
