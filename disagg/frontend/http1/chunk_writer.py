"""Pieces of a running answer straight to its socket: no task, no queue, one write each.

Way:   an engine's step -> sinks.Chunks -> [ChunkWriter] -> transport
Owns:  what one turn of the event loop has to write, until that turn's end
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

# With TLS, asyncio counts as unsent what its socket's transport would not take, and that one takes a write whole before
# it says that it is full. So much of an answer, and a transport's own 64 KiB, is what nobody can ask for.
TLS_PIECE = 64 << 10
TLS_UNCOUNTED = 2 * TLS_PIECE


class ChunkWriter:
    """Writes events of a connection's running answer without a task, after its first part and before its last.

    It also calls who watches when the client leaves. One a connection, reused by one answer after the other.
    """

    __slots__ = ("_burst", "_is_lost", "_on_lost", "_transport", "is_chunked", "takes")

    def __init__(self, transport: asyncio.Transport, burst: Burst) -> None:
        self._transport, self._burst = transport, burst
        self._is_lost = False
        self._on_lost: Callable[[], None] | None = None
        self.takes = True  # the client is there, and reads
        self.is_chunked = True  # HTTP/1.0 has no chunks: its bodies end with the connection

    def write(self, part: bytes) -> None:
        self._burst.put(self._transport, b"%x\r\n%b\r\n" % (len(part), part) if self.is_chunked else part)

    def watch(self, on_lost: Callable[[], None]) -> None:
        """Calls it when the connection is lost; at once, if it is. For one answer at a time."""
        self._on_lost = on_lost
        if self._is_lost:
            on_lost()

    def unwatch(self, on_lost: Callable[[], None]) -> None:
        if self._on_lost is on_lost:  # else the next answer has begun
            self._on_lost = None

    def lost(self) -> None:
        self._is_lost, self.takes = True, False
        if self._on_lost is not None:
            self._on_lost()


class Burst:
    """All that one turn of the event loop writes to clients, one write close upon the other.

    A client on our machine is then woken once for many of them; so is a proxy in front of us.
    """

    def __init__(self) -> None:
        self.parts: list[tuple[asyncio.Transport, bytes]] = []

    def put(self, transport: asyncio.Transport, part: bytes) -> None:
        """To be written in the event loop's next turn, or by `write`, after what was put before."""
        parts = self.parts
        if not parts:
            asyncio.get_running_loop().call_soon(self.write)
        parts.append((transport, part))

    def write(self) -> None:
        parts, self.parts = self.parts, []
        for transport, part in parts:
            if transport.is_closing():
                continue
            if len(part) <= TLS_PIECE or transport.get_extra_info("sslcontext") is None:
                transport.write(part)
                continue
            for at in range(0, len(part), TLS_PIECE):
                transport.write(part[at : at + TLS_PIECE])
