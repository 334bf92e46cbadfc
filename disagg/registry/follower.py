"""A copy of a deployment's table, as a store has it.

Way:   Source (a store, or the controller's connection) -> [Follower] -> a frontend's routing and status
Owns:  the rule of what a lost key means. While the controller's key is there and says that all is, a key that goes was
       taken away, and is gone here. Else it may only have been lost with the controller's lease: nothing is known to
       have changed, and what is known stays until the controller has told everything anew
Fails: `connect` raises StoreLost. Afterwards a store that is away changes nothing here
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from disagg.registry.interface import Watched
from disagg.registry.keys import Keys, decode_controller, read
from disagg.registry.store import Batch, Source, StoreLost

BEGIN_S = 15.0  # for a controller that has begun to tell everything


class Follower(Watched):
    """Read only. From `connect` on it follows, until `close`, or until the source has an end: then `watch` ends."""

    def __init__(self, source: Source, keys: Keys) -> None:
        super().__init__()
        self._source, self._keys = source, keys
        self._is_told = False  # the controller's key is there, and all is
        self.control = ""  # host:port where the controller is asked; a new one has another
        self._lost: dict[str, None] = {}  # keys that went while it was not
        self._following: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        """Returns when the whole table is here. Raises StoreLost when the store does not answer, or no deployment of
        that name is there within BEGIN_S."""
        try:
            async with asyncio.timeout(BEGIN_S):
                since = await self._source.snapshot(self._keys.prefix)
                self._take(Batch(since.revision, dict(since.entries)))
                batches = self._source.watch(self._keys.prefix, since)
                while not self._is_told:
                    self._take(await anext(batches))
        except TimeoutError:
            what = f"no deployment {self._keys.deployment} of namespace {self._keys.namespace} is in the registry"
            raise StoreLost("registry", what, "see `disagg list`") from None
        except StopAsyncIteration:
            raise StoreLost("registry", "it closed the connection") from None
        self._following = asyncio.create_task(self._follow(batches), name="follow the store")

    async def close(self) -> None:
        if self._following is not None:
            self._following.cancel()
        await self._source.close()

    async def _follow(self, batches: AsyncIterator[Batch]) -> None:
        try:
            async for batch in batches:
                self._take(batch)
        finally:
            self._table.close()

    def _take(self, batch: Batch) -> None:
        changes = dict(batch.changes)
        if self._keys.controller in changes:
            entry = changes[self._keys.controller]
            controller = decode_controller(entry.value) if entry is not None else None
            self._is_told = controller is not None and controller.is_whole
            self.control = controller.control if controller is not None else self.control
        for key, entry in batch.changes.items():
            self._lost.pop(key, None)
            if entry is None and not self._is_told:
                self._lost[key] = None
                del changes[key]
        if self._is_told:
            changes.update(self._lost)
            self._lost = {}
        read_in = read(changes)
        read_in.revision = batch.revision
        self._table.apply(read_in)
