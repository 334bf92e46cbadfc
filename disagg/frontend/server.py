"""Listens, keeps the time of connections, and stops in order.

Way:   client -> [HttpServer] -> http1.Connection -> app
Owns:  the listening socket; the door, with its connections and the tasks of running requests
Fails: StartError for an address that cannot be had

Why an HTTP/1.1 of our own: docs/decisions.md, 2026-11-29.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from typing import Any

from disagg.errors import StartError
from disagg.frontend.http1 import App, Connection, Door, Limits, Refusals
from disagg.frontend.open_files import connections_allowed
from disagg.frontend.tls import HANDSHAKE_S, Tls

BACKLOG = 2048
SHUTDOWN_S = 300.0
CANCEL_S = 2.0  # what a cancelled request may take to give its engines back
# A client whose machine or network is gone sends nothing: after 60 + 6 x 10 s without a sign its connection is lost.
KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}


class HttpServer:
    def __init__(self, app: App, limits: Limits, refusals: Refusals) -> None:
        self._app, self._limits, self._refusals = app, limits, refusals

    async def start(self, host: str, port: int, *, shares_port: bool = False, tls: Tls | None = None) -> None:
        listener = listen(host, port, shares_port=shares_port)
        self.port: int = listener.getsockname()[1]
        self.door = Door(self._app, self._limits, self._refusals, connections_allowed(self._limits.connections))
        self._tls = tls
        of_tls: dict[str, Any] = {}
        if tls is not None:
            # The door has limits of its own for a client that does not take the rest; these come after them.
            of_tls = {"ssl": tls.context, "ssl_handshake_timeout": HANDSHAKE_S, "ssl_shutdown_timeout": SHUTDOWN_S}
        self._listening = await asyncio.get_running_loop().create_server(
            lambda: Connection(self.door), sock=listener, backlog=BACKLOG, **of_tls
        )
        self._ticking = asyncio.create_task(self._tick(), name="time limits of connections")

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._limits.tick_s)
            now_s = asyncio.get_running_loop().time()
            self.door.tick(now_s)
            if self._tls is not None:
                self._tls.look(now_s)
            more = True
            while more:
                more = self.door.end_late(now_s)
                await asyncio.sleep(0)  # others' turn

    async def stop(self, limit_s: float) -> None:
        """Stops listening, lets running requests end within the limit, cancels the rest."""
        door, door.is_closing = self.door, True
        self._listening.close()
        for connection in list(door.connections):
            connection.shut_down()
        door.run_all()
        if door.tasks:
            await asyncio.wait(list(door.tasks), timeout=limit_s)
        for task in list(door.tasks):
            task.cancel("the server stops")
        if door.tasks:
            await asyncio.wait(list(door.tasks), timeout=CANCEL_S)
        self._ticking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._ticking
        door.burst.write()
        for connection in list(door.connections):
            connection.abort()


def listen(host: str, port: int, *, shares_port: bool = False) -> socket.socket:
    """Accepted sockets inherit TCP_NODELAY: without it a token waits some 40 ms for the client's delayed ACK."""
    where = f"{host}:{port}"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=shares_port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            would_do = "stop what listens there, or set frontend.port to another one"
            raise StartError(where, "the port is in use", would_do) from error
        would_do = "set frontend.host to an address of this machine, frontend.port to one you may open"
        raise StartError(where, f"cannot listen: {error.strerror or error}", would_do) from error
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    listener.setblocking(False)
    return listener
