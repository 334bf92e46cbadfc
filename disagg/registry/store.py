"""What a registry is kept in: a small table of keys, shared by processes, with leases and a watch.

Way:   publisher -> [Store] -> followers, `disagg list`. Backends: memory_store.py, file_store.py, etcd_store.py
In:    keys are texts with '/' between their parts (keys.py), values bytes of some kB
Owns:  what every backend keeps to, and tests/registry/test_store_contract.py asks of each of them:
       - a write is whole where it is compared, and for up to WHOLE_MAX keys; more keys come in their order
       - a key put under a lease goes when that lease is revoked or lost, with all others of it at once
       - a watch misses nothing and makes nothing up: what it tells, added to the snapshot that it began with, is the
         table. Changes in between are merged. It goes on through any loss, from where it was
Fails: StoreLost when nothing answers within the call's limit (a watch and a lease try on by themselves); Conflict;
       LeaseLost. After a StoreLost nobody knows whether a write was made: it is to be made again
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping
from random import Random
from typing import NamedTuple

import msgspec

from disagg.errors import DisaggError

WHOLE_MAX = 100  # keys of one write that is not cut; etcd takes 128 operations a transaction
ABSENT = 0  # the version of a key that is not there
FIRST_PAUSE_S, PAUSE_MAX_S = 0.2, 5.0


class StoreLost(DisaggError):
    """It cannot be reached, or does not answer."""


class Conflict(DisaggError):
    """A key is not in the version that was expected. After a StoreLost it may be one's own write that is there."""


class LeaseLost(DisaggError):
    """The lease has run out, or was revoked: its keys are gone. Another one is to be granted."""


class Entry(NamedTuple):
    value: bytes
    version: int  # another one after each put; grows


class Snapshot(msgspec.Struct, frozen=True):
    """All keys under a prefix, at `revision` of the store."""

    revision: int
    entries: dict[str, Entry]


class Batch(msgspec.Struct, frozen=True):
    """Key -> its newest entry; None: it is gone. `revision`: of the store after that."""

    revision: int
    changes: dict[str, Entry | None]


class Lease(ABC):
    """Kept alive by its store until it is revoked, or the store is closed; `lost` is set once it cannot be any more."""

    def __init__(self, ttl_s: float) -> None:
        self.ttl_s = ttl_s
        self.lost = asyncio.Event()

    async def held_until(self, happens: Awaitable[object]) -> bool:
        """Returns once that has happened, or the lease is lost: then False."""
        waiting = asyncio.ensure_future(self.lost.wait()), asyncio.ensure_future(happens)
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            return not self.lost.is_set()
        finally:
            for each in waiting:
                each.cancel()

    @abstractmethod
    async def revoke(self) -> None:
        """Its keys are gone then. Raises StoreLost: they go when the lease runs out."""


class Source(ABC):
    """What whoever only reads needs."""

    @abstractmethod
    async def snapshot(self, prefix: str) -> Snapshot:
        """Raises StoreLost."""

    @abstractmethod
    def watch(self, prefix: str, since: Snapshot) -> AsyncIterator[Batch]:
        """What is other than in `since`, and then each change. No batch is empty; what came and went may be told as
        gone."""

    @abstractmethod
    async def close(self) -> None:
        """Its leases are not renewed any more, and run out."""


class Store(Source):
    @abstractmethod
    async def grant(self, ttl_s: float) -> Lease:
        """Raises StoreLost."""

    @abstractmethod
    async def write(
        self,
        changes: Mapping[str, bytes | None],
        lease: Lease | None = None,
        expect: Mapping[str, int] | None = None,
    ) -> None:
        """Puts what has a value, deletes the others; what is put goes with `lease`. Only if each key of `expect` has
        that version there. Raises StoreLost, Conflict, LeaseLost."""


def pauses_s(random: Random) -> Iterator[float]:
    """Before each further try, without end. Each is drawn from a range that doubles: those who lost the same store at
    the same moment do not come back at the same moment."""
    up_to_s = FIRST_PAUSE_S
    while True:
        yield random.uniform(0.0, up_to_s)
        up_to_s = min(2 * up_to_s, PAUSE_MAX_S)


def difference(old: Mapping[str, Entry], new: Mapping[str, Entry]) -> dict[str, Entry | None]:
    changes: dict[str, Entry | None] = {key: None for key in old if key not in new}
    changes.update({key: entry for key, entry in new.items() if old.get(key) != entry})
    return changes


def under(prefix: str, entries: Mapping[str, Entry]) -> dict[str, Entry]:
    return {key: entry for key, entry in entries.items() if key.startswith(prefix)}
