"""One client's connection: requests in their order, each answered before the next begins.

Way:   transport -> [Connection] -> Call -> app -> transport
In:    bytes as they come in; no head, body or waiting request beyond the door's limits
Owns:  its transport; its running Call; what waits behind it; `deadline_s` of what is waited for, which Door.tick reads
Fails: never: what is wrong is answered once, then the connection closes, and nothing after it is read as a request

Closing is always: the answer, our FIN, then reading past what the client still sends until it closes, too. A socket
closed with bytes unread would send a reset, which takes the answer from the client's hands.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any, cast

from disagg.errors import BadRequest, FrontendFull, RequestError
from disagg.frontend.http1.call import STATUS_LINES, Call, ClientGone
from disagg.frontend.http1.chunk_writer import TLS_UNCOUNTED, ChunkWriter
from disagg.frontend.http1.door import REFUSED, STUCK, Door
from disagg.frontend.http1.half_closed import HalfClosed
from disagg.frontend.http1.head import Head, check_beginning, empty_line, parse_head
from disagg.frontend.responses import error_body

TLS_UNSENT = 64 << 10  # bytes, beyond which an answer waits for its client
REFUSED_AT_ONCE = 64  # connections beyond the limit that are given an answer; those beyond are reset


class Connection(asyncio.Protocol):
    """The asyncio protocol of one client. The event loop calls it; no method blocks, and none raises.

    `deadline_s` is on the loop's clock: `Door.end_late` ends the connection once it has passed.
    """

    def __init__(self, door: Door) -> None:
        self.door = door
        self.deadline_s = math.inf  # of what is waited for: a head, a body, the client's end
        self.is_tls = False
        self.unsent_bytes = 0
        self._unsent_since_s = self._moved_at_s = 0.0
        self._unsent_most_bytes = 0
        self._loop = asyncio.get_running_loop()
        self._call: Call | None = None
        self._buffer = bytearray()  # of a head, or of requests that wait
        self._searched = 0  # of it, for a head's end
        self._requests = 0
        self._body_began_s = 0.0
        self._is_deaf = False  # what comes is thrown away
        self._thrown_bytes = 0
        self._is_paused = self._got_eof = False
        self._half_closed: HalfClosed | None = None
        self._writable: asyncio.Future[None] | None = None

    # What the transport tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.is_tls = transport.get_extra_info("sslcontext") is not None
        if self.is_tls:
            # As without: asyncio's own are 512 KiB of what is to be written here, and 256 KiB of what came.
            self.transport.set_write_buffer_limits(TLS_UNSENT)
            if (limit := getattr(transport, "set_read_buffer_limits", None)) is not None:
                limit(TLS_UNSENT)
        self.chunk_writer = ChunkWriter(self.transport, self.door.burst)
        peer: Any = transport.get_extra_info("peername")
        self.client = str(peer[0]) if peer else None
        own: Any = transport.get_extra_info("sockname")
        self.ends = (tuple(peer[:2]), tuple(own[:2])) if peer and own else None
        is_full = self.door.is_full()
        self.door.connections.add(self)
        if not is_full:
            self._wait_for_request()
            return
        if len(self.door.connections) > self.door.connections_max + REFUSED_AT_ONCE:
            self.door.refusals.add(REFUSED)
            self.abort()
        else:
            what = f"{self.door.connections_max} connections are open"
            self.refuse(FrontendFull("frontend", what, "try again"), REFUSED)

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            self._thrown_bytes += len(data)
            if self._thrown_bytes > self.door.limits.linger_bytes:
                self.abort()
            return
        try:
            self._take(data)
        except RequestError as error:
            self.refuse(error)

    def eof_received(self) -> bool:
        """True: the connection stays open for the answer. With TLS it cannot: asyncio closes both ways together."""
        self._got_eof = True
        self.door.burst.write()  # False lets the transport close, and an answer of this turn is to go out before
        call = self._call
        if self.is_tls or (self._is_deaf and (call is None or call.finished)):
            return False
        if call is None:
            if self._buffer:
                self.refuse(BadRequest(None, "malformed_request", "the connection ended within a request's head"))
            return False
        if not call.has_body:
            self._give_up_body(BadRequest(None, "malformed_body", "the connection ended within the body"))
        elif not call.finished:
            file = self.transport.get_extra_info("socket").fileno()
            self._half_closed = HalfClosed(file, self._ask_whether_there, self.abort)
        return not call.finished

    def connection_lost(self, exc: Exception | None) -> None:
        self.door.connections.discard(self)
        self.door.waiting.pop(self, None)
        self.deadline_s = math.inf
        self._is_deaf = True
        self._empty_buffer()
        self._stop_asking()
        if self._call is not None and not self._call.finished:
            self._call.break_off(ClientGone())
        self.chunk_writer.lost()
        self.resume_writing(is_lost=True)

    def pause_writing(self) -> None:
        self.chunk_writer.takes = False

    def resume_writing(self, is_lost: bool = False) -> None:
        self.chunk_writer.takes = not is_lost
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    # What the call asks

    def write(self, data: bytes) -> None:
        self.door.burst.put(self.transport, data)

    async def writable(self) -> None:
        """Several may wait: the samples of one answer."""
        if not self.transport.is_closing():
            if self._writable is None or self._writable.done():
                self._writable = self._loop.create_future()
            await asyncio.shield(self._writable)

    def resume_reading(self) -> None:
        if self._is_paused and not self.transport.is_closing():
            self._is_paused = False
            self.transport.resume_reading()

    def hold(self, call: Call, size: int) -> None:
        self.door.hold(size)
        call.held_bytes += size

    def release(self, call: Call) -> None:
        self.door.held_bytes -= call.held_bytes
        call.held_bytes = 0

    def is_last_request(self) -> bool:
        return self.door.is_closing or self._is_deaf or self._requests >= self.door.limits.requests

    def answered(self) -> None:
        """Its last byte is written."""
        self._stop_asking()
        assert self._call is not None
        if self._call.has_body:
            self._next()
        elif self._call.closes:
            self._end()
        else:
            self.resume_reading()  # to the body's end, which is near

    def refuse(self, error: RequestError, reason: str = "") -> None:
        """Answers and closes: where the next request would begin is not known, or not of interest."""
        self.door.refusals.add(reason or error.code)
        body = error_body(error)
        fields = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n" % len(body)
        if isinstance(error, FrontendFull):
            fields += b"retry-after: 1\r\n"
        self.write(b"%bdate: %b\r\n%b\r\n%b" % (STATUS_LINES[error.http_status], self.door.date, fields, body))
        self._end()

    def abort(self) -> None:
        """Drops the connection with all that is unsent."""
        self.transport.abort()

    def shut_down(self) -> None:
        """The server stops: an idle connection closes, a busy one after its answer."""
        if self._call is None:
            self._close()

    # What the door's clock asks

    def late(self) -> None:
        limits, self.deadline_s = self.door.limits, math.inf
        call = self._call
        if self._is_deaf:
            self.abort()
        elif call is not None and call.finished:
            self.abort()  # the rest of a body that nobody wants
        elif call is not None:
            self._give_up_body(BadRequest(None, "request_timeout", _late("body", limits.body_grace_s), 408))
        elif self._buffer:
            self.refuse(BadRequest(None, "request_timeout", _late("head", limits.head_s), 408))
        else:
            self._close()

    def unsent(self, now_s: float) -> int:
        """Bytes that the client has not taken. Drops a client that takes nothing, or takes the rest too slowly."""
        size = self.transport.get_write_buffer_size()
        if not size:
            self.unsent_bytes = 0
            return 0
        if not self.unsent_bytes:
            self._unsent_since_s, self._unsent_most_bytes = now_s, size
        if size != self.unsent_bytes:
            self.unsent_bytes, self._moved_at_s = size, now_s
        limits, is_complete = self.door.limits, self._call is None or self._call.finished
        flush_s = limits.write_s + self._unsent_most_bytes / limits.flush_bytes_per_s
        if now_s >= self._moved_at_s + limits.write_s or (is_complete and now_s >= self._unsent_since_s + flush_s):
            self.door.refusals.add(STUCK)
            self.abort()
            return 0
        return size

    # Requests in

    def _take(self, data: bytes) -> None:
        rest: bytes | None = data
        while rest:
            call = self._call
            if call is None:
                rest = None if self._is_deaf else self._take_head(rest)
            elif not call.has_body:
                rest = self._take_body(call, rest)
            else:
                self._wait_behind(rest)
                return

    def _take_head(self, came: bytes) -> bytes | None:
        limits, buffer = self.door.limits, self._buffer
        if buffer:
            self._keep(came)
        data = buffer or came
        end = data.find(b"\r\n\r\n", max(self._searched - 3, empty_line(data))) + 4
        if end < 4:
            check_beginning(data, self._searched, limits)
            if not buffer:
                self._keep(came)
                self.deadline_s = self._loop.time() + limits.head_s
            self._searched = len(buffer)
            return None
        head, rest = parse_head(bytes(data[:end]), limits), bytes(data[end:])
        self._empty_buffer()
        self._begin(head)
        return rest

    def _begin(self, head: Head) -> None:
        self._requests += 1
        self.door.waiting.pop(self, None)
        self._call = call = Call(self, head)
        if call.has_body:
            self.deadline_s = math.inf
        else:
            self._body_began_s = self._loop.time()
            self.deadline_s = self._body_began_s + self.door.limits.body_grace_s
        self.door.run(call)

    def _take_body(self, call: Call, data: bytes) -> bytes | None:
        limits = self.door.limits
        try:
            rest = call.feed(data)
        except RequestError as error:
            self._give_up_body(error)
            return None
        if rest is None:
            self.deadline_s = self._body_began_s + limits.body_grace_s + call.size / limits.body_bytes_per_s
            if not call.wants_more(limits.rest_bytes):
                self._pause_reading()
            return None
        self.deadline_s = math.inf
        if call.finished:
            self._next()
        return rest

    def _give_up_body(self, error: RequestError) -> None:
        """Where it would end is not known, or it will not come: nothing behind it is read."""
        call = self._call
        assert call is not None
        self._is_deaf, self.deadline_s = True, math.inf
        call.closes = True
        call.break_off(error)
        if call.finished:
            self._end()

    def _wait_behind(self, data: bytes) -> None:
        try:
            self._keep(data)
        except FrontendFull:
            self._is_deaf = True
            self._empty_buffer()
            return
        if len(self._buffer) > self.door.limits.head_bytes:
            self._pause_reading()

    def _next(self) -> None:
        """The answer is out, its request's body in."""
        assert self._call is not None
        closes, self._call = self._call.closes or self._is_deaf or self.door.is_closing, None
        if closes:
            self._end()
            return
        self._wait_for_request()
        self.resume_reading()
        if self._buffer:
            data = bytes(self._buffer)
            self._empty_buffer()
            self.data_received(data)
        if self._got_eof and self._call is None and not self._is_deaf:
            if self._buffer:
                self.refuse(BadRequest(None, "malformed_request", "the connection ended within a request's head"))
            else:
                self._close()

    def _wait_for_request(self) -> None:
        self.deadline_s = self._loop.time() + self.door.limits.idle_s
        self.door.waiting[self] = None

    def _keep(self, data: bytes) -> None:
        self.door.hold(len(data))
        self._buffer += data

    def _empty_buffer(self) -> None:
        self.door.held_bytes -= len(self._buffer)
        self._buffer, self._searched = bytearray(), 0

    def _pause_reading(self) -> None:
        if not self._is_paused and not self.transport.is_closing():
            self._is_paused = True
            self.transport.pause_reading()

    # The end

    def _end(self) -> None:
        self._is_deaf = True
        self.door.waiting.pop(self, None)
        self._empty_buffer()
        if self._got_eof or self.transport.is_closing() or self.is_tls:
            self._close()
            return
        self.door.burst.write()
        self._expect_its_end()
        try:
            self.transport.write_eof()
        except OSError:  # it was reset, and nobody has been told yet
            self._close()
            return
        self.resume_reading()

    def _close(self) -> None:
        self.door.burst.write()
        if self.is_tls and not self.transport.is_closing():
            self._is_deaf = True  # a client with TLS says that it has read all
            self._expect_its_end()
        self.transport.close()

    def _expect_its_end(self) -> None:
        """What the client sends is thrown away meanwhile. It has the time to take what is unsent."""
        limits, size = self.door.limits, self.transport.get_write_buffer_size()
        self.deadline_s = self._loop.time() + limits.linger_s
        if size:
            self.deadline_s += limits.write_s
        if self.is_tls:
            size += TLS_UNCOUNTED
        self.deadline_s += size / limits.flush_bytes_per_s

    def _ask_whether_there(self) -> bool:
        said = self._call.ask_whether_there() if self._call is not None else b""
        if said:
            self.write(said)
        return said is not None

    def _stop_asking(self) -> None:
        if self._half_closed is not None:
            self._half_closed.stop()
            self._half_closed = None


def _late(what: str, limit_s: float) -> str:
    return f"the {what} did not come in time: {limit_s:g} s" + (", and more as it comes" if what == "body" else "")
