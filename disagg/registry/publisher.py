"""Brings the controller's table into a store, under a lease, and keeps it there.

Way:   the controller's Registry -> [Publisher] -> Store -> followers
In:    the table's changes, merged while the store is slow or away: the controller never waits for it
Owns:  the deployment's keys. Its name is claimed: of two that have one name, the second one does not start
Fails: StartError from `begin`. Later a store that is lost is tried on with growing pauses, and has all that changed
       meanwhile once it is back. A lease that ran out is replaced and all keys are put anew; the controller's key says
       when that is done, and until then followers keep what they know (follower.py)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from random import Random

import msgspec

from disagg.errors import StartError
from disagg.registry.interface import Watched
from disagg.registry.keys import Keys, decode_controller, encode
from disagg.registry.records import ControllerRecord
from disagg.registry.store import ABSENT, Conflict, Lease, LeaseLost, Snapshot, Store, StoreLost, pauses_s

log = logging.getLogger(__name__)

CLAIM_MORE_S = 2.0  # beyond a lease: one that was killed has lost its name by then
CLAIM_POLL_S = 0.5
END_S = 1.0


class Taken(Conflict):
    """Another one has the deployment's name."""


class TakenByOurs(Taken):
    """It is an earlier controller of one's own deployment, which may not have ended yet."""


class Publisher:
    """`begin` claims the name, `run` is its task, `end` takes all keys away."""

    def __init__(
        self, registry: Watched, store: Store, keys: Keys, me: ControllerRecord, lease_s: float, random: Random
    ) -> None:
        self._registry, self._store, self._keys, self._me = registry, store, keys, me
        self._lease_s, self._random = lease_s, random
        self._lease: Lease | None = None
        self.is_taken = asyncio.Event()  # another one has the name
        self._published = -1  # revision of the table
        self._has_published = asyncio.Event()  # each time it is another one

    async def begin(self, control: str = "") -> None:
        """`control`: host:port where frontends ask the controller, for them to read. Raises StartError when the store
        does not answer, or another deployment has the name. One's own, by an earlier controller, is waited for."""
        self._me = msgspec.structs.replace(self._me, control=control)
        give_up_s = self._give_up_s()
        while True:
            try:
                self._lease = await self._claim()
                return
            except StoreLost as error:
                raise StartError("registry", error.message, "see that it runs, and what `registry` says") from None
            except Conflict as error:
                if isinstance(error, TakenByOurs):
                    give_up_s = self._give_up_s()
                elif time.monotonic() > give_up_s:
                    self.is_taken.set()
                    raise StartError("registry", error.what, error.would_do) from None
                log.info("%s; waiting until its lease runs out", error.what)
                await asyncio.sleep(CLAIM_POLL_S)

    def _give_up_s(self) -> float:
        return time.monotonic() + self._lease_s + CLAIM_MORE_S

    @property
    def has_begun(self) -> bool:
        return self._lease is not None

    async def run(self) -> None:
        """Until it is cancelled."""
        pauses = pauses_s(self._random)
        while True:
            try:
                self._lease = self._lease or await self._claim()
                await self._publish(self._lease)
                log.warning("the registry's lease is lost; putting everything anew")
                self._lease = None
            except (StoreLost, Conflict) as error:
                if isinstance(error, Taken):
                    self.is_taken.set()
                log.warning("%s; trying again", error)
                await asyncio.sleep(next(pauses))

    async def published(self, limit_s: float) -> bool:
        """Waits until the store has what the table says now; false after `limit_s`."""
        revision = self._registry.revision
        try:
            async with asyncio.timeout(limit_s):
                while self._published < revision:
                    await self._has_published.wait()
        except TimeoutError:
            return False
        return True

    async def end(self) -> None:
        if self._lease is not None:
            await give_back(self._lease)

    async def _claim(self) -> Lease:
        """Raises Conflict while another one has the name, and StoreLost."""
        lease = await self._store.grant(self._lease_s)
        try:
            there = await self._store.snapshot(self._keys.controller)
            version = _version_of(there, self._keys.controller, self._me)
            await self._take_name(lease, version)
        except (Conflict, StoreLost):
            await give_back(lease)
            raise
        return lease

    async def _take_name(self, lease: Lease, version: int) -> None:
        try:
            await self._store.write({self._keys.controller: encode(self._me)}, lease, {self._keys.controller: version})
        except (Conflict, LeaseLost):
            raise Conflict("registry", "the deployment's name was taken this moment", "choose another name") from None

    async def _publish(self, lease: Lease) -> None:
        """Returns when the lease is lost. Raises StoreLost before all is there."""
        there = await self._store.snapshot(self._keys.prefix)
        watch = self._registry.watch()
        view = await anext(watch)
        whole = msgspec.structs.replace(self._me, is_whole=True)
        all_keys = self._keys.spelt(view.changes)
        old = {key: None for key in there.entries if key not in all_keys and not self._keys.is_of_others(key)}
        pending: dict[str, bytes | None] = {**old, **all_keys, self._keys.controller: encode(whole)}
        while await self._write(pending, lease):
            self._note(view.changes.revision)
            if not await lease.held_until(watch.changed()):
                return
            view = await anext(watch)
            pending = self._keys.spelt(view.changes)

    async def _write(self, changes: Mapping[str, bytes | None], lease: Lease) -> bool:
        """However long that takes; false when the lease is lost."""
        pauses = pauses_s(self._random)
        while not lease.lost.is_set():
            try:
                await self._store.write(changes, lease)
                return True
            except LeaseLost:
                return False
            except StoreLost as error:
                log.warning("%s; serving goes on, and it is told later", error)
                await asyncio.sleep(next(pauses))
        return False

    def _note(self, revision: int) -> None:
        self._published = revision
        event, self._has_published = self._has_published, asyncio.Event()
        event.set()


async def give_back(lease: Lease) -> None:
    """Within END_S; else it runs out."""
    with contextlib.suppress(StoreLost, TimeoutError):
        async with asyncio.timeout(END_S):
            await lease.revoke()


def _version_of(there: Snapshot, key: str, me: ControllerRecord) -> int:
    """What is to be replaced. Raises Taken when it is another's."""
    entry = there.entries.get(key)
    if entry is None:
        return ABSENT
    owner = decode_controller(entry.value)
    if owner.run != me.run:
        what = f"a deployment of this name and namespace is there, by process {owner.pid} on {owner.host}"
        is_ours = _deployment_of(owner.run) == _deployment_of(me.run)
        raise (TakenByOurs if is_ours else Taken)("registry", what, "choose another name or namespace, or end that one")
    return entry.version


def _deployment_of(run: str) -> str:
    """Controllers of a detached deployment that follow each other have runs RUN.TOKEN."""
    return run.partition(".")[0]
