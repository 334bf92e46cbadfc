"""An OTLP collector for tests: takes protobuf over HTTP, and keeps what it decodes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass
class Got:
    name: str
    trace_id: str
    span_id: str
    parent: str
    kind: int
    begin_s: float
    end_s: float
    attributes: dict[str, Any]
    events: list[str]
    failed: bool
    service: str


@dataclass
class Collector:
    """`status`: what it answers from now on; 200 until it is changed."""

    url: str = ""
    status: int = 200
    spans: list[Got] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def of(self, trace_id: str) -> list[Got]:
        return [span for span in self.spans if span.trace_id == trace_id]

    def wait(self, trace_id: str, count: int, limit_s: float = 20.0) -> list[Got]:
        end_s = time.monotonic() + limit_s
        while len(self.of(trace_id)) < count and time.monotonic() < end_s:
            time.sleep(0.05)
        return self.of(trace_id)

    def take(self, body: bytes) -> None:
        asked = ExportTraceServiceRequest.FromString(body)
        for resource in asked.resource_spans:
            service = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
            for scope in resource.scope_spans:
                for span in scope.spans:
                    attributes = {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}
                    times = span.start_time_unix_nano / 1e9, span.end_time_unix_nano / 1e9
                    ids = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
                    events = [event.name for event in span.events]
                    of_it = (span.kind, *times, attributes, events, span.status.code == 2, service)
                    self.spans.append(Got(span.name, *ids, *of_it))


@contextmanager
def collector() -> Iterator[Collector]:
    here = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            here.headers.append(dict(self.headers))
            here.paths.append(self.path)
            if here.status == 200:
                here.take(body)
            self.send_response(here.status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    here.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield here
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
