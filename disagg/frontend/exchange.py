"""One HTTP request and its answer, in the words of OpenAI's API.

Way:   HttpServer -> [Exchange] -> handlers
In:    a Call: head, body, and the way back to the client
Owns:  nothing beyond the exchange; a client that leaves, or does not read, ends the handler by ClientGone
Fails: RequestError for a body that is too large (413), too slow (408), malformed (400), or one too many (503)
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import parse_qsl

from disagg.errors import FrontendFull, NoReadyPair, Overloaded, RateLimited, RequestError
from disagg.frontend.http1 import Call, ClientGone
from disagg.frontend.responses import error_body
from disagg.telemetry.traces.http_trace import HttpTrace

RETRY_AFTER_S = b"1"
JSON = b"application/json"
EVENT_STREAM = b"text/event-stream; charset=utf-8"

Header = tuple[bytes, bytes]


class Exchange:
    """What a handler sees of one HTTP request, and how it answers: once, whole or as a stream of events."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.method: str = call.head.method
        self.path: str = call.head.path
        self.request_headers: list[Header] = call.head.fields
        self.answer_headers: list[Header] = []
        self.request_id = ""  # of a generation
        self.action: str | None = None  # what it does, in the audit log; None: what its path says; empty: nothing
        self.trace: HttpTrace | None = None  # None: it is not traced
        self.status = 0  # of the answer, once it has begun
        self.error_type = ""  # of the error that it ended with
        self.received_at_s = 0.0  # monotonic; once it has an id
        self._body: bytes | None = None  # that was looked into
        self.error_body: Callable[[RequestError], bytes] = error_body  # in the words of its API
        self.error_event: Callable[[bytes], bytes] = lambda error: b"data: " + error + b"\n\n"

    def request_header(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.request_headers if key == name), None)

    def query(self, name: str) -> str | None:
        return dict(parse_qsl(self.call.head.query.decode("latin-1"))).get(name)

    async def peek(self, limit_bytes: int) -> bytes:
        """The body; who reads it next gets it again."""
        self._body = await self.body(limit_bytes)
        return self._body

    async def body(self, limit_bytes: int) -> bytes:
        """Fails: as Call.body."""
        body, self._body = self._body, None
        return await self.call.body(limit_bytes) if body is None else body

    @contextmanager
    def while_connected(self) -> Iterator[None]:
        """Cancels what runs inside when the client leaves, or is given up because it does not read: then ClientGone."""
        task = asyncio.current_task()
        assert task is not None
        is_gone = False

        def on_lost() -> None:
            nonlocal is_gone
            is_gone = True
            task.cancel("client gone")

        self.call.chunk_writer.watch(on_lost)
        try:
            yield
        except asyncio.CancelledError:
            if is_gone and task.uncancel() == 0:
                raise ClientGone from None
            raise
        finally:
            self.call.chunk_writer.unwatch(on_lost)

    async def answer(self, status: int, body: bytes, content_type: bytes = JSON) -> None:
        self.status = status
        await self.call.respond(status, [(b"content-type", content_type), *self.answer_headers], body)

    async def fail(self, error: RequestError) -> None:
        """Also in the midst of an event stream, which then ends without its [DONE]."""
        self.error_type = error.code
        if self.call.answered:
            await self.call.writable()
            self.write_events(self.error_event(error_body(error)), last=True)
            return
        if isinstance(error, Overloaded | NoReadyPair | FrontendFull):
            self.answer_headers.append((b"retry-after", RETRY_AFTER_S))
        elif isinstance(error, RateLimited) and error.wait_s:
            self.answer_headers.append((b"retry-after", b"%d" % math.ceil(error.wait_s)))
        await self.answer(error.http_status, self.error_body(error))

    def write_events(self, events: bytes, *, last: bool = False) -> None:
        """Part of an event stream, for a client that reads; the first call sends the head with it."""
        self.status = 200
        fields = [(b"content-type", EVENT_STREAM), (b"cache-control", b"no-cache"), *self.answer_headers]
        self.call.write(events, fields, last=last)
