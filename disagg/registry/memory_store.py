"""A store in one process's memory: the controller's, which it serves to its frontends (served.py).

Way:   publisher -> [MemoryStore] -> StoreServer
Owns:  Memory, what all handles of it share. A handle that is closed is as a process that died: its leases end at once
Fails: Conflict, LeaseLost; it is never lost itself
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from disagg.registry.store import ABSENT, Batch, Conflict, Entry, Lease, LeaseLost, Snapshot, Store, difference, under


@dataclass(eq=False)
class _Watcher:
    prefix: str
    pending: dict[str, Entry | None]
    changed: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(eq=False)
class Memory:
    revision: int = 0
    entries: dict[str, Entry] = field(default_factory=dict)
    owners: dict[str, Lease] = field(default_factory=dict)  # by key
    watchers: list[_Watcher] = field(default_factory=list)

    def change(self, changes: Mapping[str, bytes | None], lease: Lease | None) -> None:
        self.revision += 1
        for key, value in changes.items():
            if value is None and key not in self.entries:
                continue
            entry = None if value is None else Entry(value, self.revision)
            self.owners.pop(key, None)
            if entry is None:
                del self.entries[key]
            else:
                self.entries[key] = entry
                if lease is not None:
                    self.owners[key] = lease
            for watcher in self.watchers:
                if key.startswith(watcher.prefix):
                    watcher.pending[key] = entry
                    watcher.changed.set()


class MemoryLease(Lease):
    def __init__(self, ttl_s: float, memory: Memory) -> None:
        super().__init__(ttl_s)
        self._memory = memory

    async def revoke(self) -> None:
        self.end()

    def end(self) -> None:
        if not self.lost.is_set():
            self.lost.set()
            self._memory.change({key: None for key, owner in self._memory.owners.items() if owner is self}, None)


class MemoryStore(Store):
    def __init__(self, memory: Memory | None = None) -> None:
        self._memory = memory or Memory()
        self._leases: list[MemoryLease] = []

    @property
    def revision(self) -> int:
        return self._memory.revision

    async def snapshot(self, prefix: str) -> Snapshot:
        return Snapshot(self._memory.revision, under(prefix, self._memory.entries))

    async def watch(self, prefix: str, since: Snapshot) -> AsyncIterator[Batch]:
        memory = self._memory
        watcher = _Watcher(prefix, difference(since.entries, under(prefix, memory.entries)))
        memory.watchers.append(watcher)
        try:
            while True:
                if watcher.pending:
                    changes, watcher.pending = watcher.pending, {}
                    yield Batch(memory.revision, changes)
                else:
                    watcher.changed.clear()
                    await watcher.changed.wait()
        finally:
            memory.watchers.remove(watcher)

    async def grant(self, ttl_s: float) -> MemoryLease:
        self._leases.append(MemoryLease(ttl_s, self._memory))
        return self._leases[-1]

    async def write(
        self,
        changes: Mapping[str, bytes | None],
        lease: Lease | None = None,
        expect: Mapping[str, int] | None = None,
    ) -> None:
        if lease is not None and lease.lost.is_set():
            raise LeaseLost("registry", "the lease has ended")
        for key, version in (expect or {}).items():
            entry = self._memory.entries.get(key)
            if (entry.version if entry else ABSENT) != version:
                raise Conflict("registry", f"{key} is in another version")
        self._memory.change(changes, lease)

    async def close(self) -> None:
        for lease in self._leases:
            lease.end()
