"""Of many requests that arrive at once, some begin in each turn of the event loop: streams, and those that have begun,
go on in between."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # tests share wire.py; they are not a package

from wire import Echo, connect, door_of, turns

from disagg.frontend.http1 import Limits, Refusals
from disagg.frontend.http1.door import BEGUN_A_TURN
from disagg.frontend.server import HttpServer

GET = b"GET /%d HTTP/1.1\r\nhost: h\r\n\r\n"
COUNT = 5 * BEGUN_A_TURN


async def test_a_burst_begins_in_its_order_and_the_first_are_answered_before_the_last_begin() -> None:
    app = Echo()
    door = door_of(app)
    wires = [connect(door) for _ in range(COUNT)]
    for number, wire in enumerate(wires):
        wire.connection.data_received(GET % number)
    assert len(door.tasks) == BEGUN_A_TURN
    await turns(2)
    assert len(app.got) < COUNT
    assert wires[0].statuses == [200]
    assert not wires[-1].sent
    await turns(12)
    assert [path for _, path, _ in app.got] == [f"/{number}" for number in range(COUNT)]
    assert all(wire.statuses == [200] for wire in wires)


async def test_what_runs_has_its_turn_while_a_burst_begins() -> None:
    app = Echo()
    door = door_of(app)
    for number in range(COUNT):
        connect(door).connection.data_received(GET % number)
    begun = []
    while len(app.got) < COUNT:
        await asyncio.sleep(0)
        begun.append(len(app.got))
    assert max(after - before for before, after in zip([0, *begun], begun, strict=False)) <= BEGUN_A_TURN


async def test_a_request_that_comes_alone_begins_at_once() -> None:
    door = door_of(Echo())
    await turns()
    for number in range(3):
        connect(door).connection.data_received(GET % number)
        assert len(door.tasks) == 1
        await turns()
        assert not door.tasks


async def test_whose_client_has_left_meanwhile_does_no_harm() -> None:
    app = Echo()
    door = door_of(app)
    wires = [connect(door) for _ in range(COUNT)]
    for number, wire in enumerate(wires):
        wire.connection.data_received(GET % number)
    wires[-1].abort()
    await turns(20)
    assert not door.tasks
    assert all(wire.statuses == [200] for wire in wires[:-1])
    assert not wires[-1].sent


async def test_a_server_that_stops_still_answers_who_has_arrived() -> None:
    app = Echo()
    server = HttpServer(app, Limits(), Refusals())
    await server.start("127.0.0.1", 0)
    wires = [connect(server.door) for _ in range(COUNT)]
    for number, wire in enumerate(wires):
        wire.connection.data_received(GET % number)
    await server.stop(30)
    assert all(wire.statuses == [200] for wire in wires)
