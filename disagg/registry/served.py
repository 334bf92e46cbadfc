"""The controller's table for other processes: all of it at the start, then what changes, one frame at a time.

Way:   controller's registry -> [RegistryServer] =frames=> [RemoteRegistry] -> a frontend's routing and status
In:    a watch for each connection; out: Changes, at first the whole table, and the next ones only when the last
       ones were SEEN: what happens to a frontend that is slow is merged here, and costs no more than the table itself
Fails: when the connection ends, `watch` ends: the deployment's driver is gone, and so is the deployment
"""

from __future__ import annotations

import asyncio

import msgspec

from disagg.plane.framing import Connection
from disagg.plane.network import TCP
from disagg.registry.changes import Changes
from disagg.registry.frame_server import FrameServer
from disagg.registry.interface import Watched
from disagg.registry.met import Met

CONNECT_S = 10.0
SEEN = b""  # the frame of a frontend that has taken in the last one


def _met_of(_type: type, by_prefill: dict[str, dict[str, None]]) -> Met:
    return Met((prefill, decode) for prefill, decodes in by_prefill.items() for decode in decodes)


_encode = msgspec.msgpack.Encoder(enc_hook=Met.by_prefill).encode
decode_changes = msgspec.msgpack.Decoder(Changes, dec_hook=_met_of).decode


class RegistryServer(FrameServer):
    """`frames_sent` and `bytes_sent` count what went to all frontends together, without their lengths in front."""

    def __init__(self, registry: Watched, secret: bytes) -> None:
        super().__init__(secret)
        self._registry = registry
        self.frames_sent = self.bytes_sent = 0
        self._seen: dict[Connection, int] = {}  # the newest revision that each frontend has taken in
        self._one_has_seen = asyncio.Event()  # each time it is another one

    async def serve(self, connection: Connection, frames: asyncio.Queue[bytes]) -> None:
        self._seen[connection] = -1
        try:
            async for view in self._registry.watch():
                body, revision = _encode(view.changes), view.changes.revision
                self.frames_sent += 1
                self.bytes_sent += len(body)
                connection.send(body)
                await frames.get()  # SEEN
                self._seen[connection] = revision
                self._note()
        finally:
            del self._seen[connection]
            self._note()

    async def all_have_seen(self, limit_s: float) -> bool:
        """Waits until every frontend that is connected has taken in what the table says now; false after `limit_s`."""
        revision = self._registry.revision
        try:
            async with asyncio.timeout(limit_s):
                while any(seen < revision for seen in self._seen.values()):
                    await self._one_has_seen.wait()
        except TimeoutError:
            return False
        return True

    def _note(self) -> None:
        event, self._one_has_seen = self._one_has_seen, asyncio.Event()
        event.set()


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
        self._table.apply(decode_changes(body))
        self._connection.send(SEEN)
        self._is_whole.set()

    def _lost(self) -> None:
        self._table.close()
        self._is_whole.set()
