"""One connection of the request plane: prove the secret, then frames both ways.

Way:   a frontend's PlaneClient <-> [Connection on each side] <-> an engine host's PlaneServer
In:    bytes of a TCP socket; out: whole frames (4 bytes of little-endian length, then msgpack)
Fails: a peer that does not prove the secret within HANDSHAKE_S, or sends an oversized frame, is dropped
       before anything it sent is parsed; one that sends what `on_frame` cannot read is dropped too. Of those that have
       not proven it yet a server holds as many as its doorstep (doorstep.py)

Handshake (fixed sizes, so nothing is parsed before it is done): the server sends a nonce; the client answers with its
own nonce and HMAC(secret, "client", both nonces); the server checks it and answers HMAC(secret, "server", both nonces).
"""

from __future__ import annotations

import asyncio
import hmac
import os
import socket
from collections.abc import Callable
from typing import cast

import msgspec

from disagg.plane.doorstep import Doorstep
from disagg.plane.messages import MAX_FRAME_BYTES

NONCE_BYTES = 32
MAC_BYTES = 32
HANDSHAKE_S = 5.0
SEND_BUFFER_MAX_BYTES = 64 << 20  # a peer this far behind is not reading any more
GATHERED_BYTES = 64 << 10  # frames that wait for the end of the event loop's turn; more are written at once


def _proof(secret: bytes, side: bytes, server_nonce: bytes, client_nonce: bytes) -> bytes:
    return hmac.digest(secret, b"disagg plane 1 " + side + server_nonce + client_nonce, "sha256")


class Connection(asyncio.Protocol):
    """Calls `on_open(self)` once the peer is proven, `on_frame(body)` for each frame, `on_lost(why)` exactly once."""

    def __init__(
        self,
        secret: bytes,
        *,
        is_server: bool,
        on_open: Callable[[Connection], None],
        on_frame: Callable[[bytes], None],
        on_lost: Callable[[str], None],
        doorstep: Doorstep | None = None,
    ) -> None:
        """`doorstep`: of the listener that it came to; None for one that we make."""
        self._secret, self._is_server, self._doorstep = secret, is_server, doorstep
        self.on_open, self.on_frame, self.on_lost = on_open, on_frame, on_lost
        self._nonce = os.urandom(NONCE_BYTES)
        self._buffer = bytearray()
        self._gathered: list[bytes] = []  # lengths and bodies of frames that wait for the end of this turn of the loop
        self._gathered_bytes = 0
        self._proven = False
        self._why_lost = ""
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._expected_proof = b""

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its class
        raw = transport.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._timer = asyncio.get_running_loop().call_later(HANDSHAKE_S, self.close, "no handshake in time")
        if self._is_server:
            self._transport.write(self._nonce)
        if self._doorstep is not None:
            self._doorstep.came(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._proven and not self._prove():
            return
        self._emit_frames()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._doorstep is not None:
            self._doorstep.left(self, self._why_lost or "it closed")
        self._transport = None
        self.on_lost(self._why_lost or (str(exc) if exc else "closed by the peer"))

    # ours

    def send(self, body: bytes) -> None:
        """One frame, at once. After the connection is lost it does nothing: `on_lost` has told."""
        self._gather(body)
        self._flush()

    @property
    def unsent_bytes(self) -> int:
        """What the operating system has not taken yet."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def send_soon(self, body: bytes) -> None:
        """One frame, in one write with all others of this turn of the event loop: a write costs as much as a hundred
        lines of ours, and wakes the peer."""
        if not self._gathered:
            asyncio.get_running_loop().call_soon(self._flush)
        self._gather(body)
        if self._gathered_bytes > GATHERED_BYTES:
            self._flush()

    def _gather(self, body: bytes) -> None:
        self._gathered += (len(body).to_bytes(4, "little"), body)
        self._gathered_bytes += len(body)

    def _flush(self) -> None:
        if not self._gathered:
            return
        data = b"".join(self._gathered)
        self._gathered.clear()
        self._gathered_bytes = 0
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(data)
        if self._transport.get_write_buffer_size() > SEND_BUFFER_MAX_BYTES:
            self.close("the peer does not read")

    def close(self, why: str) -> None:
        """What was sent before goes out first, as far as the peer takes it at once."""
        if self._transport is not None:
            self._why_lost = self._why_lost or why
            self._flush()
            self._transport.abort()

    def _prove(self) -> bool:
        """One step of the handshake; True once the peer is proven."""
        assert self._transport is not None
        if self._is_server:
            if len(self._buffer) < NONCE_BYTES + MAC_BYTES:
                return False
            client_nonce, mac = bytes(self._buffer[:NONCE_BYTES]), bytes(self._buffer[NONCE_BYTES:][:MAC_BYTES])
            if not hmac.compare_digest(mac, _proof(self._secret, b"client", self._nonce, client_nonce)):
                self._buffer.clear()
                self.close("wrong secret")
                return False
            del self._buffer[: NONCE_BYTES + MAC_BYTES]
            self._transport.write(_proof(self._secret, b"server", self._nonce, client_nonce))
        elif not self._expected_proof:
            if len(self._buffer) < NONCE_BYTES:
                return False
            server_nonce = bytes(self._buffer[:NONCE_BYTES])
            del self._buffer[:NONCE_BYTES]
            self._expected_proof = _proof(self._secret, b"server", server_nonce, self._nonce)
            self._transport.write(self._nonce + _proof(self._secret, b"client", server_nonce, self._nonce))
            return self._prove() if self._buffer else False
        else:
            if len(self._buffer) < MAC_BYTES:
                return False
            if not hmac.compare_digest(bytes(self._buffer[:MAC_BYTES]), self._expected_proof):
                self._buffer.clear()
                self.close("the server does not know the secret")
                return False
            del self._buffer[:MAC_BYTES]
        self._proven = True
        if self._timer is not None:
            self._timer.cancel()
        if self._doorstep is not None:
            self._doorstep.entered(self)
        self.on_open(self)
        return True

    def _emit_frames(self) -> None:
        buffer, start = self._buffer, 0
        while len(buffer) - start >= 4:
            size = int.from_bytes(buffer[start : start + 4], "little")
            if size > MAX_FRAME_BYTES:
                buffer.clear()
                self.close(f"a frame of {size} bytes")
                return
            if len(buffer) - start - 4 < size:
                break
            try:
                self.on_frame(bytes(buffer[start + 4 : start + 4 + size]))
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                self.close(f"a frame that cannot be read: {error}")
                return
            start += 4 + size
            if self._transport is None:
                return
        del buffer[:start]
