"""The registry in the controller's memory, for frontends on other ends of a connection.

Way:   the controller's table -> Publisher -> MemoryStore -> [RegistryServer] =frames=> [RemoteRegistry] -> a frontend's
       routing and status
In:    a watch for each connection; out: Batches, at first the whole store, and the next ones only when the last ones
       were SEEN: what happens to a frontend that is slow is merged here, and costs no more than the store itself
Fails: when the connection ends, `watch` ends: the deployment's driver is gone, and so is the deployment
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random

import msgspec

from disagg.plane.framing import Connection
from disagg.plane.network import TCP
from disagg.registry.follower import Follower
from disagg.registry.frame_server import FrameServer
from disagg.registry.interface import Watched
from disagg.registry.keys import Keys
from disagg.registry.memory_store import MemoryStore
from disagg.registry.publisher import Publisher
from disagg.registry.records import ControllerRecord
from disagg.registry.store import Batch, Snapshot, Source, StoreLost

CONNECT_S = 10.0
SEEN = b""  # the frame of a frontend that has taken in the last one
HERE = Keys("-", "-", "-")  # a store of one deployment alone needs no names
ME = ControllerRecord(run="-", host="-", pid=0)

_encode = msgspec.msgpack.Encoder().encode
decode_batch = msgspec.msgpack.Decoder(Batch).decode


class RegistryServer(FrameServer):
    """`frames_sent` and `bytes_sent` count what went to all frontends together, without their lengths in front."""

    def __init__(self, registry: Watched, secret: bytes) -> None:
        super().__init__(secret)
        self._store = MemoryStore()
        self._publisher = Publisher(registry, self._store, HERE, ME, 0.0, Random())
        self._publishing: asyncio.Task[None] | None = None
        self.frames_sent = self.bytes_sent = 0
        self._seen: dict[Connection, int] = {}  # the newest revision that each frontend has taken in
        self._one_has_seen = asyncio.Event()  # each time it is another one

    @property
    def is_taken(self) -> asyncio.Event:
        return self._publisher.is_taken  # it never is

    async def claim(self, control: str) -> None:
        """Nobody else can have the name. `control`: host:port where the controller is asked."""
        await self._publisher.begin(control)

    async def start(self, host: str) -> int:
        if not self._publisher.has_begun:
            await self.claim("")
        self._publishing = asyncio.create_task(self._publisher.run(), name="publish the registry")
        return await super().start(host)

    async def close(self) -> None:
        if self._publishing is not None:
            self._publishing.cancel()
        await super().close()

    async def serve(self, connection: Connection, frames: asyncio.Queue[bytes]) -> None:
        self._seen[connection] = -1
        try:
            async for batch in self._store.watch("", Snapshot(0, {})):
                body = _encode(batch)
                self.frames_sent += 1
                self.bytes_sent += len(body)
                connection.send(body)
                await frames.get()  # SEEN
                self._seen[connection] = batch.revision
                self._note()
        finally:
            del self._seen[connection]
            self._note()

    async def all_have_seen(self, limit_s: float) -> bool:
        """Waits until every frontend that is connected has taken in what the table says now; false after `limit_s`."""
        try:
            async with asyncio.timeout(limit_s):
                await self._publisher.published(limit_s)
                revision = self._store.revision
                while any(seen < revision for seen in self._seen.values()):
                    await self._one_has_seen.wait()
        except TimeoutError:
            return False
        return True

    def _note(self) -> None:
        event, self._one_has_seen = self._one_has_seen, asyncio.Event()
        event.set()


class _Served(Source):
    """A RegistryServer's store, by a connection of its own."""

    def __init__(self, address: str, secret: bytes) -> None:
        self._address, self._secret = address, secret
        self._frames: asyncio.Queue[bytes | None] = asyncio.Queue()  # None: there is no more
        self._connection: Connection | None = None

    async def snapshot(self, prefix: str) -> Snapshot:
        """Connects, the first time. Raises StoreLost."""
        host, port = self._address.rsplit(":", 1)
        try:
            async with asyncio.timeout(CONNECT_S):
                if self._connection is None:
                    await TCP.connect(self._make, host, int(port))
                body = await self._frames.get()
        except OSError as error:  # TimeoutError is one
            raise StoreLost(self._address, f"the controller's registry does not answer: {error}") from None
        if body is None:
            raise StoreLost(self._address, "the controller's registry closed the connection")
        self._says_seen()
        batch = decode_batch(body)
        return Snapshot(batch.revision, {key: entry for key, entry in batch.changes.items() if entry is not None})

    async def watch(self, prefix: str, since: Snapshot) -> AsyncIterator[Batch]:
        while (body := await self._frames.get()) is not None:
            yield decode_batch(body)
            self._says_seen()

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.close("closed here")

    def _says_seen(self) -> None:
        assert self._connection is not None
        self._connection.send(SEEN)

    def _make(self) -> Connection:
        self._connection = Connection(
            self._secret,
            is_server=False,
            on_open=lambda _connection: None,
            on_frame=self._frames.put_nowait,
            on_lost=lambda _why: self._frames.put_nowait(None),
        )
        return self._connection


class RemoteRegistry(Follower):
    """A frontend's copy of the controller's table; read only."""

    def __init__(self, address: str, secret: bytes) -> None:
        super().__init__(_Served(address, secret), HERE)
