"""Every resource of a connection has a limit in size, time and sum. The clock is the test's: nothing here waits."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any

import pytest
from wire import Echo, connect, door_of, turns

from disagg.frontend.http1 import Door, Limits
from disagg.frontend.http1.door import LATE_AT_ONCE
from disagg.frontend.http1.refusals import LOG_S

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LIMITS = Limits()
BEYOND = 1.001


def post(length: int, body: bytes = b"") -> bytes:
    return b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (length, body)


def pass_time(door: Door, seconds: float) -> None:
    """As if the loop's clock had moved: deadlines come nearer by so much."""
    for connection in door.connections:
        connection.deadline_s -= seconds
    tick(door)


def tick(door: Door) -> None:
    now_s = asyncio.get_running_loop().time()
    while door.end_late(now_s):
        pass
    door.tick(now_s)


# Time


async def test_a_head_that_does_not_come_in_time_gets_408(caplog: pytest.LogCaptureFixture) -> None:
    door = door_of(Echo())
    wire = connect(door)
    for part in (b"GET /", b" HTTP/1.1\r\n", b"Host: a\r\n"):  # a byte now and then is no reason for more time
        wire.connection.data_received(part)
        pass_time(door, LIMITS.head_s * 0.3)
    assert (wire.statuses, wire.is_over) == ([], False)
    pass_time(door, LIMITS.head_s * 0.2)
    assert (wire.statuses, wire.is_over) == ([408], True)
    assert door.refusals.by_reason == {"request_timeout": 1}
    assert door.held_bytes == 0


async def test_thousands_that_are_late_at_once_do_not_hold_up_everybody() -> None:
    door = door_of(Echo(), connections_max=10_000)
    wires = [connect(door) for _ in range(1000)]
    for wire in wires:
        wire.connection.data_received(b"GET / HTTP/1.1\r\n")
        wire.connection.deadline_s = 0.0
    ended, more = 0, True
    while more:
        more = door.end_late(1.0)
        now_ended = sum(wire.is_over for wire in wires)
        assert now_ended - ended <= LATE_AT_ONCE
        ended = now_ended
    assert ended == 1000


async def test_an_idle_connection_closes_without_a_word() -> None:
    door = door_of(Echo())
    fresh, used = connect(door), connect(door)
    pass_time(door, LIMITS.idle_s / 2)
    used.connection.data_received(GET)
    await turns()
    pass_time(door, LIMITS.idle_s / 2 * BEYOND)
    assert (fresh.is_over, fresh.sent) == (True, b"")
    assert (used.is_over, used.statuses) == (False, [200])
    pass_time(door, LIMITS.idle_s / 2 * BEYOND)
    assert (used.is_over, used.statuses) == (True, [200])


async def test_a_body_that_drips_gets_408_and_one_that_flows_is_taken() -> None:
    echo = Echo()
    door = door_of(echo)
    drips, flows = connect(door), connect(door)
    size = int(LIMITS.body_bytes_per_s) * 4
    for wire in (drips, flows):
        wire.connection.data_received(post(size))
    await turns()
    pass_time(door, LIMITS.body_grace_s * 0.9)
    drips.connection.data_received(b"x")
    flows.connection.data_received(b"x" * (size - 1))
    flows.connection.deadline_s -= LIMITS.body_grace_s * 0.9  # a deadline is set anew as bytes come
    pass_time(door, LIMITS.body_grace_s * 0.2)
    assert flows.statuses == []
    flows.connection.data_received(b"x")
    drips.connection.deadline_s -= LIMITS.body_grace_s * 0.9
    tick(door)
    await turns()
    assert (drips.statuses, drips.is_over) == ([408], True)
    assert (flows.statuses, len(echo.got[0][2])) == ([200], size)


@pytest.mark.parametrize("answered_bytes", [10, 1 << 20])
async def test_an_answer_that_nobody_takes_is_given_up(answered_bytes: int) -> None:
    """Of every kind: an error too."""
    door = door_of(Echo(answer=b"x" * answered_bytes))
    wires = [connect(door), connect(door)]
    wires[0].connection.data_received(GET)
    wires[1].connection.data_received(b"rubbish\r\n")
    await turns()
    for wire in wires:
        assert wire.statuses
        wire.unsent = answered_bytes
    for now_s in (0.0, LIMITS.write_s * 0.9):
        door.tick(now_s)
    assert not wires[0].was_aborted
    door.tick(LIMITS.write_s * BEYOND)
    assert all(wire.was_aborted for wire in wires)
    assert door.refusals.by_reason["client_does_not_read"] == 2


async def test_an_answer_that_is_taken_too_slowly_is_given_up_in_the_end() -> None:
    door = door_of(Echo())
    wire = connect(door)
    wire.connection.data_received(GET)
    await turns()
    wire.unsent = 100 * int(LIMITS.flush_bytes_per_s)
    ends_s = LIMITS.write_s + 100
    now_s = 0.0
    while now_s < ends_s:
        assert not wire.was_aborted
        door.tick(now_s)
        wire.unsent -= 1
        now_s += LIMITS.write_s / 2
    door.tick(now_s)
    assert wire.was_aborted


async def test_a_stream_that_is_taken_slowly_goes_on() -> None:
    echo = Echo(may_answer=asyncio.Event())
    door = door_of(echo)
    wire = connect(door)
    wire.connection.data_received(GET)
    await turns()
    for step in range(200):
        wire.unsent = 1000 + step % 2
        door.tick(step * LIMITS.write_s / 2)
    assert not wire.was_aborted
    wire.connection.connection_lost(None)
    assert echo.may_answer is not None
    echo.may_answer.set()
    await turns()


async def test_who_was_answered_for_good_and_still_sends_is_not_waited_for() -> None:
    door = door_of(Echo())
    sends, stays = connect(door), connect(door)
    for wire in (sends, stays):
        wire.connection.data_received(b"rubbish\r\n" + GET * 10)
        assert (wire.statuses, wire.is_over, wire.was_aborted) == ([400], True, False)
    for _ in range(LIMITS.linger_bytes >> 20):
        sends.connection.data_received(b"x" * (1 << 20))
        sends.connection.data_received(b"x")
    assert (sends.was_aborted, sends.statuses) == (True, [400])
    pass_time(door, LIMITS.linger_s * BEYOND)
    assert (stays.was_aborted, stays.statuses) == (True, [400])


async def test_who_was_answered_for_good_has_the_time_to_take_it() -> None:
    size = 100 * int(LIMITS.flush_bytes_per_s)
    door = door_of(Echo(answer=b"x" * size))
    wire = connect(door)
    wire.unsent = size
    wire.connection.data_received(GET.replace(b"Host", b"Connection: close\r\nHost"))
    await turns()
    assert wire.statuses == [200]
    for _ in range(100):
        wire.unsent -= size // 100
        pass_time(door, 1.0)
        assert not wire.was_aborted
    pass_time(door, LIMITS.write_s + LIMITS.linger_s)
    assert wire.was_aborted  # it has not closed its side


# Sums


async def test_requests_that_are_not_complete_hold_no_more_together_than_allowed() -> None:
    echo = Echo()
    door = door_of(echo, replace(LIMITS, held_bytes=1000))
    first, second, third = (connect(door) for _ in range(3))
    first.connection.data_received(post(700, b"x" * 600))
    second.connection.data_received(post(700, b"x" * 600))
    await turns()
    assert (first.statuses, second.statuses) == ([], [503])
    assert b"\r\nretry-after: " in second.sent
    assert second.is_over
    third.connection.data_received(post(300, b"x" * 300))  # at once and whole: nothing is held
    third.connection.data_received(b"GET / HTTP/1.1\r\nX: " + b"y" * 300)
    await turns()
    assert third.statuses == [200]
    assert door.held_bytes == 919
    fourth = connect(door)
    fourth.connection.data_received(b"GET / HTTP/1.1\r\nX: " + b"y" * 300)  # a head counts as well
    assert fourth.statuses == [503]
    first.connection.data_received(b"x" * 100)
    await turns()
    assert first.statuses == [200]
    for wire in (first, second, third, fourth):
        wire.connection.connection_lost(None)
    assert door.held_bytes == 0
    assert door.refusals.by_reason == {"frontend_full": 2}


async def test_a_new_client_takes_the_place_of_the_longest_idle() -> None:
    door = door_of(Echo(), connections_max=3)
    wires = [connect(door) for _ in range(3)]
    wires[0].connection.data_received(GET)  # now the second is the longest idle
    await turns()
    new = connect(door)
    new.connection.data_received(GET)
    await turns()
    assert new.statuses == [200]
    assert [wire.was_aborted for wire in wires] == [False, True, False]
    assert door.refusals.by_reason == {"connections_evicted": 1}


async def test_where_all_are_busy_a_new_client_gets_503() -> None:
    echo = Echo(may_answer=asyncio.Event())
    door = door_of(echo, connections_max=2)
    busy = [connect(door) for _ in range(2)]
    for wire in busy:
        wire.connection.data_received(GET)
    await turns()
    many = [connect(door) for _ in range(200)]
    assert {tuple(wire.statuses) for wire in many} == {(503,), ()}
    assert many[0].statuses == [503]
    assert b"\r\nretry-after: " in many[0].sent
    assert many[-1].was_aborted  # one answer costs an open file for two seconds
    assert len(door.connections) <= 2 + 65
    assert echo.may_answer is not None
    echo.may_answer.set()
    await turns()
    pass_time(door, LIMITS.linger_s * BEYOND)
    assert [wire.statuses for wire in busy] == [[200], [200]]
    after = connect(door)
    after.connection.data_received(GET)
    await turns()
    assert after.statuses == [200]


async def test_what_slow_clients_have_not_taken_is_bounded_in_sum() -> None:
    door = door_of(Echo(), replace(LIMITS, unsent_bytes=1000))
    wires = [connect(door) for _ in range(3)]
    for wire, size in zip(wires, (300, 800, 600), strict=True):
        wire.unsent = size
    door.tick(0.0)
    assert [wire.was_aborted for wire in wires] == [False, True, False]


# Sizes


async def test_the_last_request_of_a_connection_is_said_to_be_it() -> None:
    door = door_of(Echo(), replace(LIMITS, requests=3))
    wire = connect(door)
    wire.connection.data_received(GET * 5)
    await turns(40)
    assert (wire.statuses, wire.is_over) == ([200] * 3, True)
    assert wire.sent.count(b"connection: close") == 1


async def test_requests_that_wait_behind_another_are_bounded_and_none_is_lost() -> None:
    echo, limits = Echo(may_answer=asyncio.Event()), replace(LIMITS, head_bytes=1000)
    door = door_of(echo, limits)
    wire = connect(door)
    wire.connection.data_received(GET)
    await turns()
    sent = 1
    while not wire.is_paused:
        wire.connection.data_received(GET)
        sent += 1
    assert (sent - 1) * len(GET) <= limits.head_bytes + len(GET)
    assert echo.may_answer is not None
    echo.may_answer.set()
    await turns(sent * 8)
    assert wire.statuses == [200] * sent
    assert not wire.is_paused


async def test_nobody_asked_for_the_body_and_so_little_of_it_is_taken_in() -> None:
    echo = Echo(may_answer=asyncio.Event(), reads_bodies=False)
    door = door_of(echo)
    wire = connect(door)
    wire.connection.data_received(post(1 << 20))
    await turns()
    while not wire.is_paused:
        wire.connection.data_received(b"x" * 10_000)
    assert door.held_bytes <= LIMITS.rest_bytes + 10_000
    assert echo.may_answer is not None
    echo.may_answer.set()
    await turns()
    assert (wire.statuses, wire.is_over, wire.is_paused) == ([200], True, False)  # to take in what still comes
    assert b"connection: close" in wire.sent


@pytest.mark.parametrize("rest", [0, 1, LIMITS.rest_bytes])
async def test_the_rest_of_a_small_body_nobody_asked_for_keeps_the_connection(rest: int) -> None:
    door = door_of(Echo(reads_bodies=False))
    wire = connect(door)
    wire.connection.data_received(post(rest))
    await turns()
    assert (wire.statuses, wire.is_over) == ([200], False)
    wire.connection.data_received(b"x" * rest + GET)
    await turns()
    assert (wire.statuses, wire.is_over) == ([200, 200], False)
    assert door.held_bytes == 0


async def test_the_rest_of_a_body_nobody_asked_for_does_not_come_for_ever() -> None:
    door = door_of(Echo(reads_bodies=False))
    wire = connect(door)
    wire.connection.data_received(post(1000))
    await turns()
    pass_time(door, LIMITS.body_grace_s * BEYOND)
    assert (wire.statuses, wire.was_aborted) == ([200], True)


async def test_a_body_behind_an_answer_that_did_not_wait_for_it_is_no_request() -> None:
    """`Expect: 100-continue`, and the answer comes first: whether the body will follow cannot be known."""
    door = door_of(Echo(reads_bodies=False))
    wire = connect(door)
    wire.connection.data_received(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 27\r\n\r\n")
    await turns()
    wire.connection.data_received(GET)
    await turns()
    assert (wire.statuses, wire.is_over) == ([200], True)


@pytest.mark.parametrize("step", [1, 7])
async def test_a_head_that_comes_in_small_pieces_is_not_looked_through_again_with_each(step: int) -> None:
    """Work grows with the size, not with its square."""
    per_byte = []
    for size in (500, 1000, 2000):
        looked_at = 0

        class Counted(bytearray):
            def find(self, *arguments: Any) -> int:
                nonlocal looked_at
                found = super().find(*arguments)
                looked_at += (len(self) if found < 0 else found) - arguments[1]
                return found

        wire = connect(door_of(Echo()))
        wire.connection._buffer = Counted()
        head = GET[:-2] + b"X: " + b"y" * size
        for at in range(0, len(head), step):
            wire.connection.data_received(head[at : at + step])
        per_byte.append(looked_at / size)
    assert per_byte == sorted(per_byte, reverse=True)


async def test_what_is_refused_is_counted_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    door = door_of(Echo(), connections_max=1000)
    with caplog.at_level(logging.WARNING):
        for _ in range(871):
            connect(door).connection.data_received(b"rubbish\r\n")
        for now_s in (0.0, 1.0, LOG_S * 0.9):
            door.tick(now_s)
            connect(door).connection.data_received(b"rubbish\r\n")
        assert [record.message for record in caplog.records] == [
            "refused since the last such line: 871 malformed_request"
        ]
        door.tick(LOG_S * BEYOND)
        assert caplog.records[-1].message == "refused since the last such line: 3 malformed_request"
        door.tick(LOG_S * 3)
        assert len(caplog.records) == 2
