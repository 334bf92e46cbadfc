"""One HTTP request and its answer, over ASGI.

Way:   HttpServer -> [Exchange] -> handlers
In:    ASGI's scope and messages
Owns:  nothing beyond the exchange; a client that leaves, or does not read, ends the handler by ClientGone
Fails: BadRequest for a body that is too large (413, before it is read to its end) or too slow (408)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from urllib.parse import parse_qsl

from disagg.errors import BadRequest, NoReadyPair, Overloaded, RequestError
from disagg.frontend.answers import error_body, error_event
from disagg.frontend.server import ABORT, BODY_NOW, BodyNow, Message

BODY_S = 60.0  # to receive a body
REFUSED_BODY_S = 2.0  # to take in what a client goes on sending after a refusal, so that it can read the answer
RETRY_AFTER_S = b"1"
JSON = b"application/json"
EVENT_STREAM = b"text/event-stream; charset=utf-8"

Header = tuple[bytes, bytes]


class ClientGone(Exception):
    """Nobody is there to read an answer."""


class Exchange:
    def __init__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
        write_limit_s: float,
    ) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._write_limit_s = write_limit_s
        self._writing_since_s: float | None = None
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.request_headers: list[Header] = scope["headers"]
        self.answer_headers: list[Header] = []
        self.body_now: BodyNow = scope[BODY_NOW]  # for events between the first and the last
        self.answered = False  # the head is out: what follows can only be more of the body

    def request_header(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.request_headers if key == name), None)

    @property
    def client_host(self) -> str | None:
        """The peer's address."""
        client = self._scope.get("client")
        return client[0] if client else None

    @property
    def http_version(self) -> str:
        return str(self._scope["http_version"])

    def query(self, name: str) -> str | None:
        return dict(parse_qsl(self._scope["query_string"].decode("latin-1"))).get(name)

    async def body(self, limit_bytes: int) -> bytes:
        announced = self.request_header(b"content-length")
        if announced is not None and int(announced) > limit_bytes:
            await self._refuse_body(limit_bytes, more=True)
        parts, size, more = [], 0, True
        try:
            async with asyncio.timeout(BODY_S):
                while more:
                    part, more = await self._body_part()
                    size += len(part)
                    if size > limit_bytes:
                        await self._refuse_body(limit_bytes, more)
                    parts.append(part)
        except TimeoutError:
            self._close_after_answer()
            raise BadRequest(None, "request_timeout", f"the body did not come in {BODY_S:g} s", 408) from None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    @asynccontextmanager
    async def while_connected(self) -> AsyncIterator[None]:
        """Cancels what runs inside when the client leaves, or takes nothing for `write_limit_s`: then ClientGone."""
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        gone = False
        timer: asyncio.TimerHandle

        def leave() -> None:
            nonlocal gone
            gone = True
            task.cancel("client gone")

        def check_writing() -> None:
            nonlocal timer
            since_s = self._writing_since_s
            if since_s is not None and loop.time() >= since_s + self._write_limit_s:
                leave()
            else:
                timer = loop.call_at((since_s or loop.time()) + self._write_limit_s, check_writing)

        timer = loop.call_later(self._write_limit_s, check_writing)
        self.body_now.watch(leave)
        try:
            yield
        except asyncio.CancelledError:
            if gone and task.uncancel() == 0:
                raise ClientGone from None
            raise
        finally:
            timer.cancel()
            self.body_now.unwatch(leave)

    async def answer(self, status: int, body: bytes, content_type: bytes = JSON) -> None:
        length = (b"content-length", str(len(body)).encode())
        await self._start(status, [(b"content-type", content_type), length])
        await self._send({"type": "http.response.body", "body": body})

    async def answer_empty(self) -> None:
        """No Content."""
        await self._start(204, [])
        await self._send({"type": "http.response.body", "body": b""})

    async def answer_error(self, error: RequestError) -> None:
        if isinstance(error, Overloaded | NoReadyPair):
            self.answer_headers.append((b"retry-after", RETRY_AFTER_S))
        await self.answer(error.http_status, error_body(error))

    async def fail(self, error: RequestError) -> None:
        """Also in the midst of an event stream, which then ends without its [DONE]."""
        if self.answered:
            await self.write_events(error_event(error), last=True)
        else:
            await self.answer_error(error)

    async def write_events(self, events: bytes, *, last: bool = False) -> None:
        """Part of an event stream; the first call sends the head with it. Waits while the client does not read."""
        self.body_now.flush()
        self._writing_since_s = asyncio.get_running_loop().time()
        if not self.answered:
            await self._start(200, [(b"content-type", EVENT_STREAM), (b"cache-control", b"no-cache")])
        await self._send({"type": "http.response.body", "body": events, "more_body": not last})
        self._writing_since_s = None

    async def give_up(self) -> None:
        """Drops the connection: what the client has not taken yet would otherwise keep it for ever."""
        self._scope[ABORT]()
        with suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._disconnected()

    async def _start(self, status: int, headers: list[Header]) -> None:
        self.answered = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers + self.answer_headers})

    async def _body_part(self) -> tuple[bytes, bool]:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        return message.get("body", b""), message.get("more_body", False)

    async def _disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _refuse_body(self, limit_bytes: int, more: bool) -> None:
        """A client that still sends when its connection closes would see a reset instead of this answer."""
        self._close_after_answer()
        if self.request_header(b"expect") is None:
            taken = 0
            with suppress(TimeoutError):
                async with asyncio.timeout(REFUSED_BODY_S):
                    while more and taken <= 4 * limit_bytes:
                        part, more = await self._body_part()
                        taken += len(part)
        what = f"the body is larger than the limit of {limit_bytes} bytes"
        raise BadRequest(None, "request_too_large", what, http_status=413)

    def _close_after_answer(self) -> None:
        self.answer_headers.append((b"connection", b"close"))
