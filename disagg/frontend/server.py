"""Listens, speaks HTTP/1.1 and stops in order: uvicorn's parser and connections, our socket and our timing.

Way:   client -> [HttpServer] -> app
Owns:  the listening socket; the connections; the tasks of running requests
Fails: StartError for an address that cannot be had

Why uvicorn, and at which costs: docs/decisions.md, 2026-11-24. What it lacks for us is added here: headers leave in
one write with the first bytes of the body, and a connection whose client does not read can be given up.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from disagg.errors import StartError

Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

ABORT = "disagg.abort"  # in an ASGI scope: drops the connection with all that is unsent
BODY_NOW = "disagg.body_now"  # in an ASGI scope: a BodyNow
BACKLOG = 2048
IDLE_S = 75.0  # a kept-alive connection; longer than what balancers in front of us keep (60 s is usual)
CANCEL_S = 2.0  # what a cancelled request may take to give its engines back


class HttpServer:
    def __init__(self, app: App) -> None:
        self._config = uvicorn.Config(
            app,
            http=type("_ProtocolOfOneServer", (_Protocol,), {"burst": _Burst()}),
            ws="none",
            lifespan="off",
            interface="asgi3",
            access_log=False,
            log_config=None,
            log_level="warning",
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=int(IDLE_S),
        )
        self._server = uvicorn.Server(self._config)
        self._ticking: asyncio.Task[None] | None = None
        self.port = 0

    async def start(self, host: str, port: int, *, reuse_port: bool = False) -> None:
        listener = listen(host, port, reuse_port=reuse_port)
        self.port = listener.getsockname()[1]
        self._config.load()
        self._server.lifespan = self._config.lifespan_class(self._config)
        await self._server.startup(sockets=[listener])
        self._ticking = asyncio.create_task(self._server.main_loop(), name="HTTP date header")

    async def stop(self, limit_s: float) -> None:
        """Stops listening, lets running requests end within the limit, cancels the rest."""
        if self._ticking is None:
            return
        self._ticking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._ticking
        state = self._server.server_state
        for server in self._server.servers:
            server.close()
        for connection in list(state.connections):
            connection.shutdown()  # an idle one closes; a busy one after its answer
        if state.tasks:
            await asyncio.wait(list(state.tasks), timeout=limit_s)
        for task in list(state.tasks):
            task.cancel("the server stops")
        if state.tasks:
            await asyncio.wait(list(state.tasks), timeout=CANCEL_S)
        for connection in list(state.connections):
            connection.transport.abort()


def listen(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    """Accepted sockets inherit TCP_NODELAY: without it a token waits some 40 ms for the client's delayed ACK."""
    where = f"{host}:{port}"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=reuse_port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            would_do = "stop what listens there, or set frontend.port to another one"
            raise StartError(where, "the port is in use", would_do) from error
        would_do = "set frontend.host to an address of this machine, frontend.port to one you may open"
        raise StartError(where, f"cannot listen: {error.strerror or error}", would_do) from error
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setblocking(False)
    return listener


class BodyNow:
    """The body of a connection's running answer, chunked, for writes without a task: after ASGI sent its first part,
    and before it sends its last. And its end, if the client leaves."""

    __slots__ = ("_burst", "_is_lost", "_on_lost", "_transport", "takes")

    def __init__(self, transport: asyncio.Transport, burst: _Burst) -> None:
        self._transport, self._burst = transport, burst
        self._is_lost = False
        self._on_lost: Callable[[], None] | None = None
        self.takes = True  # the client is there, and reads

    def write(self, part: bytes) -> None:
        """In the event loop's next turn, or at `flush`."""
        self._burst.put(self, part)

    def flush(self) -> None:
        self._burst.write()

    def watch(self, on_lost: Callable[[], None]) -> None:
        """`on_lost` is called when the connection is lost; at once, if it is. For one answer at a time."""
        self._on_lost = on_lost
        if self._is_lost:
            on_lost()

    def unwatch(self, on_lost: Callable[[], None]) -> None:
        if self._on_lost is on_lost:  # else the next answer has begun
            self._on_lost = None

    def lost(self) -> None:
        self._is_lost, self.takes = True, False
        if self._on_lost is not None:
            self._on_lost()

    def write_now(self, part: bytes) -> None:
        transport = self._transport
        if not transport.is_closing():
            transport.write(b"%x\r\n%b\r\n" % (len(part), part))


class _Burst:
    """Writes of one turn of the event loop, one close upon the other.

    A client that shares our machine is then woken once for many of them; so is a proxy in front of us.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[BodyNow, bytes]] = []

    def put(self, body: BodyNow, part: bytes) -> None:
        parts = self._parts
        if not parts:
            asyncio.get_running_loop().call_soon(self.write)
        parts.append((body, part))

    def write(self) -> None:
        parts, self._parts = self._parts, []
        for body, part in parts:
            body.write_now(part)


class _Protocol(HttpToolsProtocol):  # type: ignore[misc] # uvicorn is not followed by mypy, so this base is Any
    burst: _Burst  # its server's

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(_HeadWithBody(transport))
        self._body = BodyNow(cast(asyncio.Transport, transport), self.burst)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[ABORT] = self.transport.abort
        self.scope[BODY_NOW] = self._body

    def pause_writing(self) -> None:
        super().pause_writing()
        self._body.takes = False

    def resume_writing(self) -> None:
        super().resume_writing()
        self._body.takes = True

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._body.lost()


class _HeadWithBody:
    """A transport that holds a response's head until the first write of its body, at most to the loop's next turn.

    uvicorn writes the two apart, and uvloop sends them apart: two segments, two wake-ups of the client.
    """

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(b"HTTP/1.1 ") and data[9:10] != b"1":  # not 100 Continue
            self._head = data
            asyncio.get_running_loop().call_soon(self._let_go)
            return
        if data:
            self._transport.write(data)

    def close(self) -> None:
        self._let_go()
        self._transport.close()

    def _let_go(self) -> None:
        if self._head:
            self.write(b"")
