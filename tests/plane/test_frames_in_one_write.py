"""Frames of one turn of the event loop leave in one write, in their order; none stays behind."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from disagg.plane import framing
from disagg.plane.framing import Connection


class Writes(asyncio.Transport):
    """Keeps what is written, write by write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.unsent_bytes = 0
        self.is_aborted = False

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def is_closing(self) -> bool:
        return self.is_aborted

    def abort(self) -> None:
        self.is_aborted = True


@pytest.fixture
async def opened() -> tuple[Connection, Writes]:
    connection = Connection(
        b"s" * 32, is_server=False, on_open=lambda _: None, on_frame=lambda _: None, on_lost=lambda _: None
    )
    transport = Writes()
    connection.connection_made(transport)
    return connection, transport


def _frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "little") + body


async def test_what_is_sent_soon_leaves_in_one_write_at_the_end_of_the_turn(opened: tuple[Connection, Writes]) -> None:
    connection, transport = opened
    for body in (b"one", b"", b"three"):
        connection.send_soon(body)
    assert not transport.writes
    await asyncio.sleep(0)
    assert transport.writes == [_frame(b"one") + _frame(b"") + _frame(b"three")]
    connection.send_soon(b"four")
    await asyncio.sleep(0)
    assert transport.writes[1:] == [_frame(b"four")]


async def test_what_is_sent_at_once_stays_behind_what_was_sent_before(opened: tuple[Connection, Writes]) -> None:
    connection, transport = opened
    connection.send_soon(b"submit")
    connection.send(b"abort")
    assert transport.writes == [_frame(b"submit") + _frame(b"abort")]
    await asyncio.sleep(0)
    assert len(transport.writes) == 1


async def test_no_more_waits_than_the_limit(opened: tuple[Connection, Writes]) -> None:
    connection, transport = opened
    long = bytes(framing.GATHERED_BYTES + 1)
    connection.send_soon(b"short")
    connection.send_soon(long)
    assert transport.writes == [_frame(b"short") + _frame(long)]


async def test_a_connection_that_closes_lets_out_what_waits(opened: tuple[Connection, Writes]) -> None:
    connection, transport = opened
    connection.send_soon(b"last words")
    connection.close("closed here")
    assert transport.writes == [_frame(b"last words")]
    assert transport.is_aborted
    connection.send_soon(b"too late")
    await asyncio.sleep(0)
    assert len(transport.writes) == 1


async def test_a_peer_that_does_not_read_is_given_up(opened: tuple[Connection, Writes]) -> None:
    connection, transport = opened
    transport.unsent_bytes = framing.SEND_BUFFER_MAX_BYTES + 1
    connection.send_soon(b"more")
    await asyncio.sleep(0)
    assert transport.is_aborted
