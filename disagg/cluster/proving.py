"""Who meets whom: no pair of incarnations serves before a real transfer between them has succeeded.

Way:   supervisor (an engine is up) -> [Prover] -> a canary on every rank of each pair -> READY, and `met`
In:    engines that are up; each is to meet all of its role's partner in its group
Out:   pairs in the registry; `on_proven` for both sides of each success, `on_failed` for both sides of each failure
Owns:  the probes under way, PROBES_MAX at most; the rule that no engine is in two of them, nor in a canary beside,
       but for one that takes longer than PATIENCE_S: who waits for a peer that is out of order meets others meanwhile
Fails: a pair that fails is tried again after RETRY_S, when the two have met everybody else
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random

from disagg.cluster.live import LiveEngine
from disagg.cluster.meetings import Meetings
from disagg.coordinator.rooms import Rooms
from disagg.registry.interface import Registry
from disagg.registry.met import Met
from disagg.role_table import ROLES
from disagg.roles import Role
from transfer.canary import CanaryFailed

log = logging.getLogger(__name__)

PROBE_S = 30.0  # a first transfer may set up its connections
PATIENCE_S = 2.0  # a pair of ranks
RETRY_S = 2.0
PROBES_MAX = 64  # at once
ALL_RANKS_MAX = 16  # pairs of ranks; of larger engines each rank is probed, but not with each of the other's

Pair = tuple[str, str]  # lives of a prefill and a decode; an aggregated engine is both


class Prover:
    """`run` does the work; `add` and `remove` tell it of engines. The registry's `met` is its memory."""

    def __init__(
        self,
        registry: Registry,
        on_proven: Callable[[str], Awaitable[None]],
        on_failed: Callable[[str, str], Awaitable[None]],
        random: Random,
    ) -> None:
        """`on_proven(life)`: it has met one more; `on_failed(life, why)`: it has not met somebody who is well."""
        self._registry, self._on_proven, self._on_failed = registry, on_proven, on_failed
        self._rooms = Rooms(random)
        self._meetings = Meetings()
        self._by_role: dict[tuple[str, Role], dict[str, None]] = {}  # (group, role) -> lives that are up
        self._probes_running = 0
        self._changed = asyncio.Event()  # something may have become free, or wanted
        self._freed = asyncio.Event()  # canaries wait for it, the first one first; each time it is another one
        self.up: dict[str, LiveEngine] = {}  # by life
        self.gone: set[str] = set()  # lives that ended while there was no controller: who comes up is told

    @property
    def met(self) -> Met:
        return self._registry.met

    @property
    def rooms(self) -> int:
        """In which a probe is under way."""
        return len(self._rooms)

    def has_met(self, life: str) -> bool:
        return bool(self.met.met_with(life))

    async def run(self) -> None:
        """Until it is cancelled."""
        async with asyncio.TaskGroup() as probes:
            while True:
                while self._probes_running < PROBES_MAX and (pair := self._meetings.next()) is not None:
                    self._probes_running += 1
                    probes.create_task(self._meet(self._in_order(pair)), name=f"probe {' and '.join(pair)}")
                self._changed.clear()
                await self._changed.wait()

    def add(self, live: LiveEngine) -> None:
        """The engine is up. It is going to meet every engine that is or comes up and has not met it, however many
        tries that takes; last those that have shown no sign of life for the longest time."""
        self.up[live.life] = live
        for life in self.gone:
            live.client.tell_peer_gone(life)
        group, role = live.record.group, ROLES[live.record.role]
        self._by_role.setdefault((group, role.name), {})[live.life] = None
        peers = self._by_role.get((group, role.partner), ()) if role.partner else [live.life]
        for life in sorted(peers, key=lambda life: self.up[life].sign_age_s):
            if (live.life, life) not in self.met and (life, live.life) not in self.met:
                self._want((live.life, life))
        self._changed.set()

    def remove(self, life: str) -> None:
        """The incarnation is dead: the others drop what they hold of it."""
        live = self.up.pop(life, None)
        if live is None:
            return
        self._by_role.get((live.record.group, live.record.role), {}).pop(life, None)
        self._meetings.drop(life)
        for other in self.up.values():
            other.client.tell_peer_gone(life)

    @asynccontextmanager
    async def alone_with(self, *lives: str) -> AsyncIterator[None]:
        """Waits until these are in no probe, and keeps them out of any."""
        await self._take(lives)
        try:
            yield
        finally:
            self._free(lives)

    async def probe_all_ranks(self, pair: Pair, limit_s: float, transfer_s: float | None = None) -> None:
        """Each pair of ranks, with `probe_pair`'s limits; of idle engines the caller is `alone_with` them. Raises
        CanaryFailed."""
        prefills, decodes = (self.up[life].endpoints() for life in pair)
        role, is_alone = ROLES[self.up[pair[1]].record.role], pair[0] == pair[1]
        for prefill_rank, decode_rank in _rank_pairs(1 if is_alone else len(prefills), len(decodes)):
            decode, prefill = decodes[decode_rank], None if is_alone else prefills[prefill_rank]
            room = self._rooms.take(prefill.dp_size, prefill.dp_rank) if prefill else self._rooms.take(1, 0)
            try:
                await role.prove(prefill, decode, room, limit_s, transfer_s)
            finally:
                self._rooms.give_back(room)

    async def _meet(self, pair: Pair) -> None:
        """One try; both are taken."""
        is_taken = True

        def let_go() -> None:
            nonlocal is_taken
            if is_taken:
                is_taken = False
                self._free(pair)

        patience = asyncio.get_running_loop().call_later(self._patience_s(pair), let_go)
        why = ""
        try:
            if self._both_serve(pair):
                await self.probe_all_ranks(pair, PROBE_S)
        except CanaryFailed as error:
            log.warning("%s", error)
            why = str(error)
        finally:
            patience.cancel()
            self._probes_running -= 1
            let_go()
            self._changed.set()
        if not self._both_serve(pair):
            return  # one of them has ended meanwhile: nothing is known of the other
        if why:
            asyncio.get_running_loop().call_later(RETRY_S, self._want, pair)
            for life in dict.fromkeys(pair):
                await self._on_failed(life, why)
            return
        await self._registry.add_met(*pair)
        # At once: one side's actor may be slow to tell its lane, and the other side is READY all the same.
        await asyncio.gather(*(self._on_proven(life) for life in dict.fromkeys(pair)))

    def _patience_s(self, pair: Pair) -> float:
        if not self._both_serve(pair):
            return 0.0
        prefill, decode = (len(self.up[life].endpoints()) for life in pair)
        return PATIENCE_S * len(_rank_pairs(1 if pair[0] == pair[1] else prefill, decode))

    async def _take(self, lives: tuple[str, ...]) -> None:
        self._meetings.claim(lives)
        try:
            while not self._meetings.take(lives):
                await self._freed.wait()
        except BaseException:
            self._meetings.unclaim(lives)
            self._changed.set()
            raise

    def _want(self, pair: Pair) -> None:
        if self._both_serve(pair):
            self._meetings.want(*pair)
            self._changed.set()

    def _both_serve(self, pair: Pair) -> bool:
        return all((live := self.up.get(life)) is not None and not live.is_retiring for life in pair)

    def _in_order(self, pair: Pair) -> Pair:
        """The one that sends KV comes first."""
        return ROLES[self.up[pair[0]].record.role].pair(*pair)

    def _free(self, lives: tuple[str, ...]) -> None:
        self._meetings.free(lives)
        self._freed.set()
        self._freed = asyncio.Event()
        self._changed.set()


def _rank_pairs(prefills: int, decodes: int) -> list[tuple[int, int]]:
    if prefills * decodes <= ALL_RANKS_MAX:
        return list(itertools.product(range(prefills), range(decodes)))
    return [(rank % prefills, rank % decodes) for rank in range(max(prefills, decodes))]
