"""Where a simulated prefill and a simulated decode engine meet: the bootstrap address, and what they say there.

Way:   decode's SimulatedEngine -> [PeerLink] -> BootstrapServer of the prefill's; KV "lands" with its first token
In/out: frames of msgpack with their length in front; a first line `GET ` is answered as SGLang's bootstrap server does
Fails: a link that ends is told once, by `on_lost`. A prefill that is silent is a heartbeat's to find (see Peer)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import msgspec


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    pass


class Hello(Message, frozen=True, tag="hello"):
    life: str


class OfRoom(Message, frozen=True):
    room: int


class Allocated(OfRoom, frozen=True, tag="allocated"):
    """Decode has KV for the prompt: prefill may begin, and knows where to write."""


class Gone(OfRoom, frozen=True, tag="gone"):
    """Decode does not want this room any more."""


class Landed(OfRoom, frozen=True, tag="landed"):
    """The whole prompt's KV has been written, and this is the first token."""

    first_token: int


class Released(OfRoom, frozen=True, tag="released"):
    """Prefill writes nothing to this room any more: decode may free its pages."""


class Heartbeat(Message, frozen=True, tag="beat"):
    """From decode, and back: the bootstrap server lives. It says nothing of the schedulers behind it."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Hello | Allocated | Gone | Landed | Released | Heartbeat).decode


class PeerLink(asyncio.Protocol):
    """One connection between two engines, on either side. `life`: of the engine at the other end, once it said so."""

    def __init__(
        self,
        on_message: Callable[[PeerLink, Message], None],
        on_lost: Callable[[PeerLink], None],
        answer: Callable[[str], tuple[int, str]] = lambda _path: (404, ""),
    ) -> None:
        self._on_message, self._on_lost, self._answer = on_message, on_lost, answer
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self.life = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data
        if buffer[:4] == b"GET ":
            self._buffer = buffer
            if b"\r\n\r\n" in buffer:
                self._answer_http(buffer.split(b" ", 2)[1].decode(errors="replace"))
            return
        while len(buffer) >= 4 and len(buffer) >= (end := 4 + int.from_bytes(buffer[:4], "little")):
            message = _decode(buffer[4:end])
            buffer = buffer[end:]
            if isinstance(message, Hello):
                self.life = message.life
            else:
                self._on_message(self, message)
        self._buffer = buffer

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._on_lost(self)

    @property
    def is_open(self) -> bool:
        return self._transport is not None

    def send(self, message: Message) -> None:
        if self._transport is not None:
            body = _encode(message)
            self._transport.write(len(body).to_bytes(4, "little") + body)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _answer_http(self, path: str) -> None:
        assert self._transport is not None
        status, body = self._answer(path)
        head = f"HTTP/1.1 {status} -\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self._transport.write(f"{head}Connection: close\r\n\r\n{body}".encode())
        self._transport.close()
