"""One HTTP request and its answer.

Way:   Connection -> [Call] -> app
In:    a Head; the body's bytes as they come in
Out:   an answer: whole by `respond`, or in parts by `write`; its head leaves in one write with its first bytes
Fails: ClientGone when nobody is there to send a body, or to take an answer that is waited for
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Protocol

from disagg.errors import BadRequest, RequestError
from disagg.frontend.http1.chunk_writer import ChunkWriter
from disagg.frontend.http1.chunked import Chunked
from disagg.frontend.http1.half_closed import COMMENT, CONTINUE
from disagg.frontend.http1.head import Field, Head
from disagg.frontend.http1.limits import Limits
from disagg.frontend.http1.refusals import Refusals

log = logging.getLogger(__name__)

PHRASES = {499: "Client Closed Request"} | {each.value: each.phrase for each in HTTPStatus}  # 499: errors.Cancelled
STATUS_LINES = {status: f"HTTP/1.1 {status} {phrase}\r\n".encode() for status, phrase in PHRASES.items()}


class ClientGone(Exception):
    """Nobody is there to read an answer."""


class CallDoor(Protocol):
    limits: Limits
    refusals: Refusals
    date: bytes


class CallConnection(Protocol):
    """What a call needs of the connection it came on. Nothing here fails, but `hold`: FrontendFull."""

    chunk_writer: ChunkWriter
    client: str | None  # its address
    ends: tuple[tuple[str, int], tuple[str, int]] | None  # the client's and ours
    is_tls: bool

    @property
    def door(self) -> CallDoor: ...

    def is_last_request(self) -> bool: ...

    # the request's body

    def resume_reading(self) -> None: ...

    def hold(self, call: Call, size: int) -> None: ...

    def release(self, call: Call) -> None: ...

    # its answer

    def write(self, data: bytes) -> None: ...

    async def writable(self) -> None: ...

    def answered(self) -> None: ...

    def refuse(self, error: RequestError) -> None: ...

    def abort(self) -> None: ...


class Call:
    """A request whose head is complete. `body` waits for the rest; `respond` or `write` answers; sizes are bytes.

    `body` raises BadRequest (413 too large, 400 malformed) and whatever ended the wait; ClientGone when the client
    left.
    """

    __slots__ = (
        "_chunked", "_connection", "_content", "_error", "_is_kept", "_left", "_limit_bytes", "_waiter",
        "answered", "chunk_writer", "client", "closes", "finished", "has_body", "head", "held_bytes", "is_tls", "size",
    )  # fmt: skip

    def __init__(self, connection: CallConnection, head: Head) -> None:
        self._connection, self.head = connection, head
        self.client: str | None = connection.client  # its address
        self.is_tls = connection.is_tls
        self.chunk_writer = connection.chunk_writer
        self.answered = False  # the head is out
        self.finished = False  # and the last byte of the body
        self.closes = not head.keeps_alive  # the connection, behind this answer
        self._chunked = Chunked() if head.length < 0 else None
        self._content: bytes | bytearray = b""  # not a list of what came: 8 MiB in segments of 2 bytes would hold 230
        self._left = max(head.length, 0)
        self.size = 0  # of the body, bytes that came
        self.held_bytes = 0  # of it, counted at the door
        self.has_body = head.length == 0  # complete
        self._is_kept = True  # else what comes is read past
        self._limit_bytes: int | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._error: Exception | None = None

    async def run(self, app: App) -> None:
        try:
            await app(self)
        except asyncio.CancelledError:
            self.abort()
            raise
        except Exception:
            log.exception("%s %s: an error nobody foresaw", self.head.method, self.head.path[:100])
            if self.answered:
                self.abort()
            else:
                self._connection.refuse(RequestError("frontend", "internal error", "see the frontend's log"))
        else:
            if not self.finished:
                self.abort()

    @property
    def ends(self) -> tuple[tuple[str, int], tuple[str, int]] | None:
        """Address and port of the client's end, and of ours."""
        return self._connection.ends

    # The request's body

    async def body(self, limit_bytes: int) -> bytes:
        """Fails: RequestError for one that is too large, too late or malformed; ClientGone."""
        self._limit_bytes = limit_bytes
        if self.head.length > limit_bytes or self.size > limit_bytes:
            self._too_large(limit_bytes)
        if not self.has_body and self._error is None:
            if self.head.expects_continue and self.size == 0:
                self._connection.write(CONTINUE)
            self._connection.resume_reading()
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._error is not None:
            raise self._error
        body, self._content = bytes(self._content), b""
        self._connection.release(self)
        return body

    def feed(self, data: bytes) -> bytes | None:
        """Takes what came of the body; what follows it, or None while it goes on. Fails: RequestError"""
        if self._chunked is not None:
            part, rest = self._chunked.feed(data)
        else:
            part = data[: self._left]
            self._left -= len(part)
            rest = data[len(part) :] if not self._left else None
        self.size += len(part)
        if self._is_kept:
            if rest is None:  # what is complete at once is the handler's within this turn of the loop
                self._connection.hold(self, len(part))
            self._keep(part)
        if self._limit_bytes is not None and self.size > self._limit_bytes:
            self._too_large(self._limit_bytes)
        if rest is not None:
            self.has_body = True
            self._wake()
        return rest

    def _keep(self, part: bytes) -> None:
        if not self._content:
            self._content = part
        elif isinstance(self._content, bytearray):
            self._content += part
        else:
            self._content = bytearray(self._content) + part

    def break_off(self, error: Exception) -> None:
        """Ends the reading of the body, which is not wanted or cannot come: whoever waits for it gets the error."""
        if self._error is not None:
            return
        self._error = error
        if isinstance(error, RequestError):
            self._connection.door.refusals.add(error.code)
        self._is_kept, self._content = False, b""
        self._connection.release(self)
        self._wake()

    def _too_large(self, limit_bytes: int) -> None:
        self.closes = True
        what = f"the body is larger than the limit of {limit_bytes} bytes"
        self.break_off(BadRequest(None, "request_too_large", what, http_status=413))

    def wants_more(self, unasked_bytes: int) -> bool:
        """Whether to read on: while nobody has asked for the body, only its first `unasked_bytes` are read."""
        return self._limit_bytes is not None or not self._is_kept or self.size <= unasked_bytes

    # Its answer

    async def respond(self, status: int, fields: Sequence[Field], body: bytes) -> None:
        """A whole answer, in one write. Nobody waits for the client to take it: the door does."""
        length = [(b"content-length", b"%d" % len(body))] if status not in (204, 304) else []
        head = self._answer_head(status, [*fields, *length])
        self._connection.write(head if self.head.method == "HEAD" else head + body)
        self._finish()

    async def writable(self) -> None:
        """Returns when the client reads; `chunk_writer.takes` says whether it does."""
        if not self.chunk_writer.takes:
            await self._connection.writable()

    def write(self, part: bytes, fields: Sequence[Field] = (), *, last: bool = False) -> None:
        """A part of an answer without a length; `fields` go with the first. To be called when the client reads."""
        connection = self._connection
        is_chunked = self.head.minor == 1
        head = b""
        if not self.answered:
            self.chunk_writer.is_chunked = is_chunked
            if not is_chunked:
                self.closes = True
            coding = [(b"transfer-encoding", b"chunked")] if is_chunked else []
            head = self._answer_head(200, [*fields, *coding])
        if is_chunked:
            part = b"%b%x\r\n%b\r\n%b" % (head, len(part), part, b"0\r\n\r\n" if last else b"")
        else:
            part = head + part
        connection.write(part)
        if last:
            self._finish()

    def abort(self) -> None:
        self._connection.abort()

    def ask_whether_there(self) -> bytes | None:
        """Bytes that a client which still reads will ignore; None where HTTP has none at this point."""
        if self.finished:
            return b""
        if self.head.minor == 0:
            return COMMENT if self.answered else None
        return b"%x\r\n%b\r\n" % (len(COMMENT), COMMENT) if self.answered else CONTINUE

    def _answer_head(self, status: int, fields: list[Field]) -> bytes:
        self.answered = True
        connection = self._connection
        if not self.has_body:
            self.closes = self.closes or self._chunked is not None or self.head.expects_continue
            self.closes = self.closes or self._left > connection.door.limits.rest_bytes
        self.closes = self.closes or connection.is_last_request()
        lines = [STATUS_LINES[status], b"date: ", connection.door.date, b"\r\n"]
        for name, value in fields:
            lines += (name, b": ", value, b"\r\n")
        if self.closes:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        head = b"".join(lines)
        if head.count(b"\n") != len(fields) + 3 + self.closes:
            raise ValueError("a line break in a header field of an answer")
        return head

    def _finish(self) -> None:
        self.finished = True
        if not self.has_body:
            self._is_kept, self._content = False, b""
            self._connection.release(self)
        self._connection.answered()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


App = Callable[[Call], Awaitable[None]]
