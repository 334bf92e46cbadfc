"""The request plane's end in an engine host: frames from frontends become legs, an engine step becomes one frame.

Way:   frontend -> [PlaneServer] -> Engine; the tokens of one engine step, for all legs of a connection, go back at once
Owns:  each connection's legs: a connection that ends takes all its legs with it
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec

from disagg.engine.interface import BootstrapPoint, Engine, Leg
from disagg.plane import messages as m
from disagg.plane.framing import Connection

log = logging.getLogger(__name__)


class PlaneServer:
    """Serves one incarnation of one engine to any number of frontends."""

    def __init__(self, engine: Engine, incarnation: int, secret: bytes) -> None:
        self._engine, self._incarnation, self._secret = engine, incarnation, secret
        self._server: asyncio.Server | None = None
        self.sessions: set[_Session] = set()

    async def start(self, host: str, port: int = 0) -> int:
        """Listens and returns the port."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accept, host, port)
        return int(self._server.sockets[0].getsockname()[1])

    def _accept(self) -> Connection:
        session = _Session(self._engine, self._incarnation, on_closed=self.sessions.discard)
        self.sessions.add(session)
        return Connection(
            self._secret, is_server=True, on_open=session.opened, on_frame=session.received, on_lost=session.lost
        )

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for session in list(self.sessions):
            if session.connection is not None:
                session.connection.close("the host stops")


class _Session:
    """One frontend's connection: its legs, and the step that is being gathered for it."""

    def __init__(self, engine: Engine, incarnation: int, on_closed: Callable[[_Session], None]) -> None:
        self._engine, self._incarnation, self._on_closed = engine, incarnation, on_closed
        self.connection: Connection | None = None
        self._legs: dict[int, _LiveLeg] = {}
        self._deltas: list[m.Delta] = []
        self._ends: list[m.LegEnd] = []
        self._flush_is_due = False

    def opened(self, connection: Connection) -> None:
        self.connection = connection

    def received(self, body: bytes) -> None:
        try:
            message = m.decode_to_host(body)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            assert self.connection is not None
            self.connection.close(f"a frame this host cannot read: {error}")
            return
        match message:
            case m.Submit():
                self._submit(message)
            case m.Abort():
                live = self._legs.get(message.leg)
                if live is not None:
                    self._engine.abort(live.handle)
            case m.LoadsWanted():
                self._send(m.Loads(self._incarnation, self._engine.loads()))
            case m.PeerGone():
                self._engine.drop_peer(message.life)
            case m.Ping():
                self._send(m.Pong(message.sent_at_s, time.monotonic()))

    def lost(self, why: str) -> None:
        if self._legs:
            log.info("a frontend is gone (%s): aborting its %d legs", why, len(self._legs))
        legs, self._legs, self.connection = self._legs, {}, None
        for live in legs.values():
            self._engine.abort(live.handle)
        self._on_closed(self)

    def _submit(self, message: m.Submit) -> None:
        if message.leg in self._legs:
            assert self.connection is not None
            self.connection.close(f"leg {message.leg} exists already")
            return
        at = message.bootstrap
        leg = Leg(
            message.request_id,
            m.unpack_ids(message.prompt),
            message.sampling,
            message.dp_rank,
            BootstrapPoint(at.host, at.port, at.room, at.prefill_dp_rank) if at else None,
        )
        log.info("leg %s begins: %d prompt tokens, room %s", leg.request_id, len(leg.prompt_ids), at.room if at else 0)
        live = self._legs[message.leg] = _LiveLeg(self, message.leg, leg.request_id)
        live.handle = self._engine.submit(leg, live)

    def add_delta(self, delta: m.Delta) -> None:
        self._deltas.append(delta)
        self._flush_soon()

    def add_end(self, end: m.LegEnd) -> None:
        if self._legs.pop(end.leg, None) is not None:
            self._ends.append(end)
            self._flush_soon()

    def _flush_soon(self) -> None:
        # The tasks that one engine step woke are in the ready queue already, so this runs after all of them.
        if not self._flush_is_due:
            self._flush_is_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_is_due = False
        step = m.Step(self._incarnation, self._deltas, self._ends)
        self._deltas, self._ends = [], []
        self._send(step)

    def _send(self, message: m.ToFrontend) -> None:
        if self.connection is not None:
            self.connection.send(m.encode(message))


class _LiveLeg:
    """The sink of one leg: counts the tokens it sent, so that the frontend can see a gap or a repeat."""

    __slots__ = ("_number", "_offset", "_request_id", "_session", "handle")

    def __init__(self, session: _Session, number: int, request_id: str) -> None:
        self._session, self._number, self._request_id = session, number, request_id
        self._offset = 0
        self.handle: object = None

    def on_tokens(self, token_ids: list[int]) -> None:
        self._session.add_delta(m.Delta(self._number, self._offset, m.pack_ids(token_ids)))
        self._offset += len(token_ids)

    def on_end(self, reason: str, detail: str, cached_tokens: int, stats: dict[str, float]) -> None:
        log.info("leg %s ends: %s, %d tokens %s", self._request_id, reason, self._offset, detail)
        self._session.add_end(m.LegEnd(self._number, reason, detail, cached_tokens, stats))
