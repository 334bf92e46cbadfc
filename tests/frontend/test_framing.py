"""Where a request ends is never a guess: each case over a socket as it is, and byte by byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from framing_cases import CASES, Case
from wire import Echo, connect, door_of, turns

from disagg.frontend.http1 import Limits, Refusals
from disagg.frontend.server import HttpServer

AFTER = b"GET /after HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


def finals(data: bytes, is_head: bool = False) -> list[int]:
    """The statuses of the answers that are no 1xx; they must follow each other without a byte between."""
    statuses = []
    while data:
        assert data.startswith(b"HTTP/1.1 "), data[:100]
        head, _, data = data.partition(b"\r\n\r\n")
        status = int(head[9:12])
        if status < 200:
            continue
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        assert b"date" in fields
        statuses.append(status)
        if not (is_head and len(statuses) == 1):
            data = data[int(fields[b"content-length"]) :]
    return statuses


def check(case: Case, echo: Echo, data: bytes) -> None:
    statuses = finals(data, case.sent.startswith(b"HEAD"))
    paths = [path for _, path, _ in echo.got]
    if case.closes:
        assert tuple(statuses) == case.statuses
        assert "/after" not in paths
    else:
        assert tuple(statuses) == (*case.statuses, 200)
        assert paths[-1] == "/after"
    if case.name != "a length of 0, and a body that is the next request":
        assert "/smuggled" not in paths
    if case.body is not None:
        assert echo.got[0][2] == case.body


@asynccontextmanager
async def echo_server() -> AsyncIterator[tuple[Echo, int]]:
    echo = Echo()
    server = HttpServer(echo, Limits(), Refusals())
    await server.start("127.0.0.1", 0)
    try:
        yield echo, server.port
    finally:
        await server.stop(0.1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_over_a_socket(case: Case) -> None:
    async with echo_server() as (echo, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(case.sent + (b"" if case.closes else AFTER))
        writer.write_eof()
        data = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        check(case, echo, data)


@pytest.mark.parametrize("case", [case for case in CASES if 0 < len(case.sent) < 3000], ids=lambda case: case.name)
async def test_byte_by_byte(case: Case) -> None:
    echo = Echo()
    door = door_of(echo)
    wire = connect(door)
    connection = wire.connection
    ends_early = case.name.startswith("half ") or case.name in ("a length that nothing follows", "an empty line alone")
    for byte in case.sent + (b"" if case.closes else AFTER):
        connection.data_received(bytes([byte]))
        while door.tasks:
            before = len(echo.got), len(wire.sent)
            await asyncio.sleep(0)
            if before == (len(echo.got), len(wire.sent)):
                break  # it waits for more
    if ends_early:
        connection.eof_received()
    await turns()
    check(case, echo, wire.sent)
    assert wire.is_over or not case.sent
    connection.connection_lost(None)
    await turns()
    assert (door.held_bytes, door.connections, door.waiting, door.tasks) == (0, set(), {}, set())
