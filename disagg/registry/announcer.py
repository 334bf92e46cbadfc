"""Writes in a store which frontends a `disagg frontend` runs, under a lease of its own, and keeps it there.

Way:   FrontendProcess -> [Announcer] -> Store -> all followers: other frontends, `disagg list`
Owns:  the keys of its frontends. Their numbers are claimed: no two frontends of a deployment have one number
Fails: StoreLost from `claim`. Later a store that is lost is tried on with growing pauses. A lease that ran out is
       replaced and all is put anew; a number that somebody has taken meanwhile is told to `on_taken`
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Callable
from random import Random

import msgspec

from disagg.registry.keys import OUTSIDE, Keys, encode
from disagg.registry.publisher import give_back
from disagg.registry.records import FrontendRecord
from disagg.registry.store import ABSENT, Conflict, Lease, LeaseLost, Store, StoreLost, pauses_s

log = logging.getLogger(__name__)

NUMBERS = 1 << 16  # a request's id has four digits for it


class Announcer:
    """`claim` numbers, `run` is its task, `end` takes all keys away. What is put is written by `run`: nobody waits."""

    def __init__(
        self, store: Store, keys: Keys, lease_s: float, on_taken: Callable[[int], None], random: Random
    ) -> None:
        self._store, self._keys, self._lease_s, self._random = store, keys, lease_s, random
        self._on_taken = on_taken
        self._lease: Lease | None = None
        self._leasing = asyncio.Lock()
        self._host, self._run = socket.gethostname(), secrets.token_hex(4)
        self._records: dict[int, FrontendRecord] = {}  # what is to be there
        self._unsaid: set[int] = set()
        self._changed = asyncio.Event()

    async def claim(self) -> int:
        """A number that no other frontend has. Until it is put its record says that it does not listen. Drawn, not
        counted: one whose lease ran out finds its number free when it is back, almost always. Raises StoreLost."""
        while True:
            lease = await self._held()
            number = self._random.randrange(OUTSIDE, NUMBERS)
            key, record = self._keys.frontend(number), self._silent(number)
            try:
                await self._store.write({key: encode(record)}, lease, {key: ABSENT})
            except Conflict:
                continue
            except LeaseLost:
                self._lost(lease)
                continue
            self._records[number] = record
            return number

    async def put_frontend(self, record: FrontendRecord) -> None:
        """Nothing is said of a number that is not held, or not any more."""
        if record.number in self._records:
            self._put(msgspec.structs.replace(record, host=self._host, run=self._run))

    async def remove_frontend(self, number: int) -> None:
        """It does not listen; its number is kept."""
        if number in self._records:
            self._put(self._silent(number))

    async def give_up(self, number: int) -> None:
        """The number is another's from now on."""
        self._records.pop(number, None)
        self._unsaid.discard(number)

    async def run(self) -> None:
        """Until it is cancelled."""
        pauses = pauses_s(self._random)
        while True:
            try:
                lease = await self._held()
                try:
                    await self._write(lease)
                except LeaseLost:
                    self._lost(lease)
                    continue
                pauses = pauses_s(self._random)
                await lease.held_until(self._changed.wait())
            except StoreLost as error:
                log.warning("%s; serving goes on, and it is told later", error)
                await asyncio.sleep(next(pauses))

    async def end(self) -> None:
        if self._lease is not None:
            await give_back(self._lease)

    async def _held(self) -> Lease:
        """The lease; in the place of one that was lost, another one, under which all is to be said anew. Raises
        StoreLost: then nothing has changed."""
        async with self._leasing:
            if self._lease is None or self._lease.lost.is_set():
                lease = await self._store.grant(self._lease_s)
                try:
                    await self._find_taken()
                except StoreLost:
                    await give_back(lease)
                    raise
                self._unsaid.update(self._records)
                self._lease = lease
            return self._lease

    def _lost(self, lease: Lease) -> None:
        if self._lease is lease:
            self._lease = None

    async def _write(self, lease: Lease) -> None:
        self._changed.clear()
        said = set(self._unsaid)
        if not said:
            return
        self._unsaid -= said  # before: what is put meanwhile is to be said, too
        try:
            await self._store.write({self._keys.frontend(each): encode(self._records[each]) for each in said}, lease)
        except BaseException:
            self._unsaid |= said & self._records.keys()
            raise

    async def _find_taken(self) -> None:
        """While our lease was gone the numbers were free."""
        there = await self._store.snapshot(self._keys.frontends)
        for number in list(self._records):
            entry = there.entries.get(self._keys.frontend(number))
            if entry is not None and msgspec.json.decode(entry.value, type=FrontendRecord).run != self._run:
                await self.give_up(number)
                self._on_taken(number)

    def _put(self, record: FrontendRecord) -> None:
        self._records[record.number] = record
        self._unsaid.add(record.number)
        self._changed.set()

    def _silent(self, number: int) -> FrontendRecord:
        return FrontendRecord(number=number, url="", pid=os.getpid(), host=self._host, run=self._run)
