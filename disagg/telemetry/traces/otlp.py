"""OpenTelemetry, behind one function: the only file of ours that imports it, and only where traces are on.

Way:   sender.py's thread -> [exporter] =OTLP, protobuf over HTTP=> the collector
Fails: StartError for an OpenTelemetry that is not installed. A collector that is away, slow or refuses: False, after
       EXPORT_S at most
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence

from disagg.errors import StartError
from disagg.telemetry.traces.sender import Export
from disagg.telemetry.traces.tree import Span

EXPORT_S = 5.0
SCOPE = "disagg"


def exporter(endpoint: str, headers: Mapping[str, str], frontend: int, deployment: str) -> Export:
    """`endpoint`: the collector's whole URL for traces."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import Event, ReadableSpan
        from opentelemetry.sdk.trace.export import SpanExportResult
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
    except ImportError as error:
        would_do = "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http, or leave telemetry.traces out"
        raise StartError("telemetry.traces", str(error), would_do) from error
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # it says each failure; sender.py says a change
    # Not the process's own id beside the name: the frontend's number outlives it.
    of_us = {
        "service.name": deployment,
        "service.instance.id": f"frontend-{frontend}",
        "host.name": socket.gethostname(),
    }
    resource = Resource({**of_us, "process.pid": os.getpid()})
    sending = OTLPSpanExporter(endpoint=endpoint, headers=dict(headers), timeout=EXPORT_S)
    kinds = {"server": SpanKind.SERVER, "client": SpanKind.CLIENT, "internal": SpanKind.INTERNAL}
    scope, flags = InstrumentationScope(SCOPE), TraceFlags(TraceFlags.SAMPLED)

    def context(trace_id: str, span_id: str) -> SpanContext:
        return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=False, trace_flags=flags)

    def made(trace_id: str, span: Span, zero_s: float) -> ReadableSpan:
        def at_ns(monotonic_s: float) -> int:
            return int((zero_s + monotonic_s) * 1e9)

        return ReadableSpan(
            name=span.name,
            context=context(trace_id, span.span_id),
            parent=context(trace_id, span.parent) if span.parent else None,
            resource=resource,
            attributes=span.attributes,
            events=[Event(name, timestamp=at_ns(at_s)) for name, at_s in span.events],
            kind=kinds[span.kind],
            status=Status(StatusCode.ERROR, span.error) if span.error else Status(StatusCode.UNSET),
            start_time=at_ns(span.begin_s),
            end_time=at_ns(max(span.end_s, span.begin_s)),
            instrumentation_scope=scope,
        )

    def export(spans: Sequence[tuple[str, Span]]) -> bool:
        zero_s = time.time() - time.monotonic()
        return sending.export([made(*each, zero_s) for each in spans]) is SpanExportResult.SUCCESS

    return export
