"""One HTTP request and its answer, in the words of OpenAI's API.

Way:   HttpServer -> [Exchange] -> handlers
In:    a Call: head, body, and the way back to the client
Owns:  nothing beyond the exchange; a client that leaves, or does not read, ends the handler by ClientGone
Fails: RequestError for a body that is too large (413), too slow (408), malformed (400), or one too many (503)
"""

from __future__ import annotations

import asyncio
from urllib.parse import parse_qsl

from disagg.errors import FrontendFull, NoReadyPair, Overloaded, RequestError
from disagg.frontend.http1 import Call, ChunkWriter, ClientGone
from disagg.frontend.responses import error_body

RETRY_AFTER_S = b"1"
JSON = b"application/json"
EVENT_STREAM = b"text/event-stream; charset=utf-8"

Header = tuple[bytes, bytes]


class WhileConnected:
    """Cancels what runs inside when the client leaves, or is given up because it does not read: then ClientGone."""

    __slots__ = ("_chunk_writer", "_is_gone", "_task")

    def __init__(self, chunk_writer: ChunkWriter) -> None:
        self._chunk_writer = chunk_writer
        self._is_gone = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._chunk_writer.watch(self)

    def __exit__(self, kind: type[BaseException] | None, _error: object, _traceback: object) -> None:
        self._chunk_writer.unwatch(self)
        if (
            self._is_gone
            and kind is not None
            and issubclass(kind, asyncio.CancelledError)
            and self._task.uncancel() == 0
        ):
            raise ClientGone from None

    def on_lost(self) -> None:
        self._is_gone = True
        self._task.cancel("client gone")


class Exchange:
    """What a handler sees of one HTTP request, and how it answers: once, whole or as a stream of events."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self.method: str = call.head.method if call.head.method != "HEAD" else "GET"  # HEAD: its answer less the body
        self.path: str = call.head.path
        self.request_headers: list[Header] = call.head.fields
        self.answer_headers: list[Header] = []
        self.client_host: str | None = call.client  # its address
        self.is_http_1_0 = call.head.minor == 0
        self.chunk_writer: ChunkWriter = call.chunk_writer  # for events between the first and the last

    def request_header(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.request_headers if key == name), None)

    @property
    def answered(self) -> bool:
        """The head is out: what follows can only be more of the body."""
        return self._call.answered

    def query(self, name: str) -> str | None:
        return dict(parse_qsl(self._call.head.query.decode("latin-1"))).get(name)

    async def body(self, limit_bytes: int) -> bytes:
        return await self._call.body(limit_bytes)

    def while_connected(self) -> WhileConnected:
        return WhileConnected(self.chunk_writer)

    async def answer(self, status: int, body: bytes, content_type: bytes = JSON) -> None:
        await self._call.respond(status, [(b"content-type", content_type), *self.answer_headers], body)

    async def answer_empty(self) -> None:
        """No Content."""
        await self._call.respond(204, self.answer_headers, b"")

    async def answer_error(self, error: RequestError) -> None:
        if isinstance(error, Overloaded | NoReadyPair | FrontendFull):
            self.answer_headers.append((b"retry-after", RETRY_AFTER_S))
        await self.answer(error.http_status, error_body(error))

    async def fail(self, error: RequestError) -> None:
        """Also in the midst of an event stream, which then ends without its [DONE]."""
        if self.answered:
            await self.writable()
            self.write_events(b"data: " + error_body(error) + b"\n\n", last=True)
        else:
            await self.answer_error(error)

    async def writable(self) -> None:
        """Returns when the client reads."""
        await self._call.writable()

    def write_events(self, events: bytes, *, last: bool = False) -> None:
        """Part of an event stream, for a client that reads; the first call sends the head with it."""
        if self.answered:
            self._call.write(events, last=last)
        else:
            fields = [(b"content-type", EVENT_STREAM), (b"cache-control", b"no-cache"), *self.answer_headers]
            self._call.write(events, fields, last=last)

    def give_up(self) -> None:
        """Drops the connection: what the client has not taken yet would otherwise keep it for ever."""
        self._call.abort()
