"""The controller's table for other processes: all of it at the start, then what changes, one frame at a time.

Way:   controller's registry -> [RegistryServer] =frames=> [RemoteRegistry] -> a frontend's routing and status
In:    a watch for each connection; out: Changed, and the next one only when the last one was Seen: what happens to a
       frontend that is slow is merged here, and costs no more than the table itself
Fails: when the connection ends, `watch` ends: the deployment's driver is gone, and so is the deployment
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec

from disagg.plane.framing import Connection
from disagg.plane.network import TCP, Listener
from disagg.registry.changes import Changes
from disagg.registry.interface import Watched
from disagg.registry.met import Met
from disagg.registry.records import EngineRecord
from disagg.registry.table import View

CONNECT_S = 10.0


class Changed(msgspec.Struct, frozen=True, tag="changed"):
    """Changes (see there) of the table up to `revision`. The first frame of a connection holds the whole table."""

    revision: int
    records: list[EngineRecord] = []
    removed: list[str] = []  # engine ids
    met: dict[str, list[str]] = {}  # prefill life -> decode lives
    forgotten: list[str] = []  # lives


class Seen(msgspec.Struct, frozen=True, tag="seen"):
    """A frontend has taken in everything up to `revision`."""

    revision: int


_encode = msgspec.msgpack.Encoder().encode
_decode_changed = msgspec.msgpack.Decoder(Changed).decode
_decode_seen = msgspec.msgpack.Decoder(Seen).decode


class RegistryServer:
    """`frames_sent` and `bytes_sent` count what went to all frontends together, without their lengths in front."""

    def __init__(self, registry: Watched, secret: bytes) -> None:
        self._registry, self._secret = registry, secret
        self._feeds: dict[Connection, _Feed] = {}
        self._listener: Listener | None = None
        self.frames_sent = self.bytes_sent = 0

    async def start(self, host: str) -> int:
        """Listens, begins to publish, and returns the port."""
        self._listener = await TCP.listen(self._accept, host)
        return self._listener.port

    async def close(self) -> None:
        if self._listener is not None:
            self._listener.close()
        for connection, feed in list(self._feeds.items()):
            feed.end()
            connection.close("the controller stops")

    def _accept(self) -> Connection:
        connection = Connection(
            self._secret,
            is_server=True,
            on_open=self._opened,
            on_frame=lambda body: self._received(connection, body),
            on_lost=lambda _why: self._lost(connection),
        )
        return connection

    def _opened(self, connection: Connection) -> None:
        self._feeds[connection] = _Feed(self, connection, self._registry.watch())

    def _received(self, connection: Connection, body: bytes) -> None:
        self._feeds[connection].seen(_decode_seen(body).revision)

    def _lost(self, connection: Connection) -> None:
        feed = self._feeds.pop(connection, None)
        if feed is not None:
            feed.end()


class _Feed:
    """What one frontend is told: one frame on its way at a time."""

    def __init__(self, server: RegistryServer, connection: Connection, watch: AsyncIterator[View]) -> None:
        self._server, self._connection, self._watch = server, connection, watch
        self._sent = self._seen = -1  # revisions
        self._has_seen = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run(), name="tell a frontend what changes")

    def seen(self, revision: int) -> None:
        self._seen = revision
        self._has_seen.set()

    def end(self) -> None:
        self._task.cancel()

    async def _run(self) -> None:
        async for view in self._watch:
            body = _encode(_as_frame(view.changes))
            self._server.frames_sent += 1
            self._server.bytes_sent += len(body)
            self._sent = view.changes.revision
            self._connection.send(body)
            while self._seen < self._sent:
                self._has_seen.clear()
                await self._has_seen.wait()


class RemoteRegistry(Watched):
    """A frontend's copy of the controller's table; read only."""

    def __init__(self, address: str, secret: bytes) -> None:
        super().__init__()
        self._address, self._secret = address, secret
        self._is_whole = asyncio.Event()  # the first frame has come, or nothing will
        self._connection: Connection | None = None

    async def connect(self) -> None:
        """Returns when the whole table is here. Raises OSError (TimeoutError is one)."""
        host, port = self._address.rsplit(":", 1)
        async with asyncio.timeout(CONNECT_S):
            await TCP.connect(self._make, host, int(port))
            await self._is_whole.wait()
        if self._table.is_closed:
            raise ConnectionError(f"the registry at {self._address} closed the connection")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close("closed here")

    def _make(self) -> Connection:
        self._connection = Connection(
            self._secret,
            is_server=False,
            on_open=lambda _connection: None,
            on_frame=self._received,
            on_lost=lambda _why: self._lost(),
        )
        return self._connection

    def _received(self, body: bytes) -> None:
        assert self._connection is not None
        changed = _decode_changed(body)
        self._table.apply(_from_frame(changed))
        self._connection.send(_encode(Seen(changed.revision)))
        self._is_whole.set()

    def _lost(self) -> None:
        self._table.close()
        self._is_whole.set()


def _as_frame(changes: Changes) -> Changed:
    return Changed(
        changes.revision,
        [record for record in changes.records.values() if record is not None],
        [engine_id for engine_id, record in changes.records.items() if record is None],
        {prefill: list(decodes) for prefill, decodes in changes.met.by_prefill().items()},
        list(changes.forgotten),
    )


def _from_frame(changed: Changed) -> Changes:
    changes = Changes(changed.revision)
    changes.forgotten = dict.fromkeys(changed.forgotten)
    changes.met = Met((prefill, decode) for prefill, decodes in changed.met.items() for decode in decodes)
    changes.records = {record.id: record for record in changed.records} | dict.fromkeys(changed.removed)
    return changes
