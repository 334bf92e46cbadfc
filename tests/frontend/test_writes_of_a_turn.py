"""What one turn of the event loop writes to clients leaves close together, in its order; nothing is lost where a
connection closes behind it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # tests share wire.py; they are not a package

from wire import Echo, Wire, connect, door_of, turns

from disagg.frontend.http1 import Connection, Door, Limits, Refusals
from disagg.frontend.server import HttpServer

GET = b"GET / HTTP/1.1\r\nhost: h\r\n\r\n"
LAST_GET = b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n"


class Watching(Wire):
    """Notes how many requests had been answered when it was first written to."""

    def __init__(self, app: Echo) -> None:
        super().__init__()
        self._app, self.answered_before = app, -1

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.answered_before < 0:
            self.answered_before = len(self._app.got)
        super().write(data)


def _connect(door: Door, app: Echo) -> Watching:
    wire = Watching(app)
    wire.connection = Connection(door)
    wire.connection.connection_made(wire)
    return wire


async def test_answers_of_one_turn_leave_once_all_of_them_are_made() -> None:
    app = Echo()
    door = door_of(app)
    wires = [_connect(door, app) for _ in range(5)]
    for wire in wires:
        wire.connection.data_received(GET)
    await turns()
    assert [wire.statuses for wire in wires] == [[200]] * 5
    assert [wire.answered_before for wire in wires] == [5] * 5


async def test_requests_that_wait_behind_each_other_are_answered_in_their_order() -> None:
    door = door_of(Echo())
    wire = connect(door)
    wire.connection.data_received(GET * 3 + b"rubbish\r\n\r\n")
    await turns(20)
    assert wire.statuses == [200, 200, 200, 400]
    assert wire.is_over


async def test_a_connection_that_closes_lets_its_answer_out_first() -> None:
    door = door_of(Echo())
    wire = connect(door)
    sent_at_end: list[bytes] = []
    wire.write_eof = lambda: sent_at_end.append(wire.sent)  # type: ignore[method-assign]
    wire.connection.data_received(LAST_GET)
    await turns()
    assert len(sent_at_end) == 1
    assert sent_at_end[0].startswith(b"HTTP/1.1 200 ")


async def test_a_client_that_shuts_its_side_in_the_turn_of_its_answer_gets_it() -> None:
    door = door_of(Echo())
    wire = connect(door)
    wire.connection.data_received(GET)
    while not door.burst.parts:
        await turns(1)
    assert not wire.connection.eof_received()  # then the transport closes by itself
    assert wire.statuses == [200]


async def test_a_server_that_stops_lets_out_what_is_answered() -> None:
    server = HttpServer(Echo(), Limits(), Refusals())
    await server.start("127.0.0.1", 0)
    wire = connect(server.door)
    wire.connection.data_received(GET)
    while not server.door.burst.parts:
        await turns(1)
    await server.stop(30)
    assert wire.statuses == [200]
