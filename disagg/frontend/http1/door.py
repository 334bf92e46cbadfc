"""What the connections of one server share: the app, the limits, and what they hold together.

Way:   HttpServer -> [Door] <- Connection
Owns:  the set of connections, the requests that wait for their turn, the tasks of those that run, the count of bytes
       held
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections import deque
from email.utils import formatdate
from typing import Protocol

from disagg.errors import FrontendFull
from disagg.frontend.http1.call import App, Call
from disagg.frontend.http1.chunk_writer import Burst
from disagg.frontend.http1.limits import Limits
from disagg.frontend.http1.refusals import Refusals

LATE_AT_ONCE = 32  # some 2 ms
BEGUN_A_TURN = 16  # some 2 ms, too: streams go on in between. 8 costs a tenth more CPU, 1000 a fifth of the rate
NO_FILES = "open_files"
EVICTED, REFUSED, STUCK, UNSENT = "connections_evicted", "connections_full", "client_does_not_read", "unsent_full"


class DoorConnection(Protocol):
    """What the door, and its server, ask of each connection."""

    deadline_s: float  # of what it waits for
    unsent_bytes: int  # at the last tick

    def late(self) -> None: ...

    def unsent(self, now_s: float) -> int: ...

    def shut_down(self) -> None: ...

    def abort(self) -> None: ...


class Door:
    """One a server. `connections_max` limits connections, `limits.held_bytes` what incomplete requests hold
    together."""

    def __init__(self, app: App, limits: Limits, refusals: Refusals, connections_max: int) -> None:
        self.app, self.limits, self.refusals = app, limits, refusals
        self.connections_max = connections_max  # what limits and open files allow
        self.connections: set[DoorConnection] = set()
        self.waiting: dict[DoorConnection, None] = {}  # without a request, the longest first
        self.tasks: set[asyncio.Task[None]] = set()
        self._arrived: deque[Call] = deque()
        self._begun = 0  # in this turn of the loop
        self._counts_turns = False
        self._loop = asyncio.get_running_loop()
        self.burst = Burst()
        self.held_bytes = 0
        self.is_closing = False
        self.date = b""
        self.tick(0.0)

    def run(self, call: Call) -> None:
        """Now, or in one of the event loop's next turns: of a burst, BEGUN_A_TURN begin in each, in their order.
        Streams that run go on in between, and so does what has begun."""
        if self._begun < BEGUN_A_TURN and not self._arrived:
            self._begin(call)
        else:
            self._arrived.append(call)
        if not self._counts_turns:
            self._counts_turns = True
            self._loop.call_soon(self._next_turn)

    def run_all(self) -> None:
        """Who has arrived begins now."""
        while self._arrived:
            self._begin(self._arrived.popleft())

    def _next_turn(self) -> None:
        self._begun = 0
        while self._arrived and self._begun < BEGUN_A_TURN:
            self._begin(self._arrived.popleft())
        self._counts_turns = self._begun > 0
        if self._counts_turns:
            self._loop.call_soon(self._next_turn)

    def _begin(self, call: Call) -> None:
        self._begun += 1
        task = self._loop.create_task(call.run(self.app))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def hold(self, size: int) -> None:
        """Before bytes are kept. Fails: FrontendFull when all connections together hold too much."""
        if self.held_bytes + size > self.limits.held_bytes:
            what = f"requests that are not complete hold {self.limits.held_bytes >> 20} MiB here already"
            raise FrontendFull("frontend", what, "try again")
        self.held_bytes += size

    def is_full(self) -> bool:
        """Makes room where it can: a client without a request loses nothing but a connection."""
        if len(self.connections) < self.connections_max:
            return False
        if not self.waiting:
            return True
        self.refusals.add(EVICTED)
        next(iter(self.waiting)).abort()
        return False

    def end_late(self, now_s: float) -> bool:
        """Ends what outlived its deadline, LATE_AT_ONCE of it; whether more is left. Thousands at once, each with its
        answer, would let every stream stand still."""
        late = [each for each in self.connections if each.deadline_s <= now_s]
        for connection in late[:LATE_AT_ONCE]:
            connection.late()
        return len(late) > LATE_AT_ONCE

    def tick(self, now_s: float) -> None:
        """Ends what its client does not take; says what was refused."""
        self.date = formatdate(usegmt=True).encode()
        unsent_bytes = 0
        for connection in list(self.connections):
            unsent_bytes += connection.unsent(now_s)
        if unsent_bytes > self.limits.unsent_bytes:
            self._drop_largest(unsent_bytes)
        self._check_files()
        self.refusals.tell(now_s)

    def _check_files(self) -> None:
        """The event loop drops who cannot be accepted for want of an open file, and says nothing. We do."""
        try:
            os.close(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            self.refusals.add(NO_FILES)
            if self.waiting:
                next(iter(self.waiting)).abort()  # its file is the next client's

    def _drop_largest(self, unsent_bytes: int) -> None:
        for connection in sorted(self.connections, key=lambda each: -each.unsent_bytes):
            if unsent_bytes <= self.limits.unsent_bytes:
                return
            unsent_bytes -= connection.unsent_bytes
            self.refusals.add(UNSENT)
            connection.abort()
