"""One side of a connection without a socket, and apps that say little."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field

from disagg.errors import RequestError
from disagg.frontend.exchange import Exchange
from disagg.frontend.http1 import Call, Connection, Door, Limits, Refusals

BODY_MAX = 1 << 20


@dataclass
class Echo:
    """An app that takes every request, and remembers it; the answer waits for `may_answer`."""

    got: list[tuple[str, str, bytes]] = field(default_factory=list)
    may_answer: asyncio.Event | None = None
    reads_bodies: bool = True
    answer: bytes = b"{}"

    async def __call__(self, call: Call) -> None:
        exchange = Exchange(call)
        try:
            body = await call.body(BODY_MAX) if self.reads_bodies else b""
        except RequestError as error:
            await exchange.fail(error)
            return
        self.got.append((call.head.method, call.head.path, body))
        if self.may_answer is not None:
            await self.may_answer.wait()
        await exchange.answer(200, self.answer)


class Wire(asyncio.Transport):
    """Stands for a client that reads all, but for `unsent` bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.sent, self.unsent = b"", 0
        self.is_over = self.was_aborted = self.is_paused = False
        self.connection: Connection

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += data

    def write_eof(self) -> None:
        self.is_over = True

    close = write_eof

    def abort(self) -> None:
        self.is_over = self.was_aborted = True
        self.connection.connection_lost(None)

    def is_closing(self) -> bool:
        return self.was_aborted

    def get_extra_info(self, name: str, default: object = None) -> object:
        return ("10.0.0.1", 1) if name == "peername" else default

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    @property
    def statuses(self) -> list[int]:
        """Of final answers, which may follow each other."""
        return [int(status) for status in re.findall(rb"HTTP/1\.1 ([2-5]\d\d) ", self.sent)]


def door_of(app: Echo, limits: Limits = Limits(), connections_max: int = 100) -> Door:
    return Door(app, limits, Refusals(), connections_max)


def connect(door: Door) -> Wire:
    wire = Wire()
    wire.connection = Connection(door)
    wire.connection.connection_made(wire)
    return wire


async def turns(count: int = 8) -> None:
    """Lets what is ready run; nothing here waits for time."""
    for _ in range(count):
        await asyncio.sleep(0)
