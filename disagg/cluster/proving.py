"""Who has met whom: no pair of incarnations serves before a real transfer between them has succeeded.

Way:   supervisor (an engine is up) -> [Prover] -> canaries on every rank -> READY, published in the registry
In:    engines that are up; out: their `peers`, and the state READY
Owns:  the table of who is up and who has met; the lock that lets canaries sing one after another
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from random import Random

from disagg.cluster.live import LiveEngine
from disagg.coordinator.rooms import Rooms
from disagg.roles import Role
from transfer.canary import CanaryFailed, probe_pair

log = logging.getLogger(__name__)

PROBE_S = 30.0  # a first transfer may set up its connections
RETRY_S = 2.0
ALL_RANKS_MAX = 16  # pairs of ranks; of larger engines each rank sings, but not with each of the other's


class Prover:
    """`on_proven(life, peer life)` is called for both sides of each success; `on_failed(life, why)` likewise."""

    def __init__(
        self,
        on_proven: Callable[[str, str], Awaitable[None]],
        on_failed: Callable[[str, str], Awaitable[None]],
        random: Random,
    ) -> None:
        self._on_proven, self._on_failed = on_proven, on_failed
        self._rooms = Rooms(random)
        self.up: dict[str, LiveEngine] = {}  # by life
        self.proven: set[tuple[str, str]] = set()  # (prefill's life, decode's life); an aggregated engine with itself
        self.one_at_a_time = asyncio.Lock()  # canaries would slow each other down

    def has_met(self, life: str) -> bool:
        return any(life in pair for pair in self.proven)

    async def add(self, live: LiveEngine) -> None:
        """The engine is up. Returns when it has met every engine that is up, however many tries that takes."""
        self.up[live.life] = live
        while unmet := self._unmet(live.life):
            met = [await self._meet(pair) for pair in unmet]
            if not all(met):
                await asyncio.sleep(RETRY_S)

    def remove(self, life: str) -> None:
        """The incarnation is dead: the others drop what they hold of it."""
        if self.up.pop(life, None) is None:
            return
        self.proven = {pair for pair in self.proven if life not in pair}
        for other in self.up.values():
            other.client.tell_peer_gone(life)

    async def sing_on_all_ranks(self, pair: tuple[str, str], limit_s: float) -> None:
        """Raises CanaryFailed. The caller holds `one_at_a_time`."""
        prefills, decodes = (self.up[life].endpoints() for life in pair)
        is_alone = pair[0] == pair[1]
        for prefill_rank, decode_rank in _rank_pairs(1 if is_alone else len(prefills), len(decodes)):
            decode, prefill = decodes[decode_rank], None if is_alone else prefills[prefill_rank]
            room = self._rooms.take(prefill.dp_size, prefill.dp_rank) if prefill else self._rooms.take(1, 0)
            try:
                await probe_pair(prefill, decode, room, limit_s)
            finally:
                self._rooms.give_back(room)

    def _unmet(self, life: str) -> list[tuple[str, str]]:
        live = self.up.get(life)
        if live is None or live.is_retiring:
            return []
        peers = [other for other in self.up.values() if not other.is_retiring]
        match live.record.role:
            case Role.AGGREGATED:
                pairs = [(life, life)]
            case Role.PREFILL:
                pairs = [(life, other.life) for other in peers if other.record.role is Role.DECODE]
            case Role.DECODE:
                pairs = [(other.life, life) for other in peers if other.record.role is Role.PREFILL]
        return [pair for pair in pairs if pair not in self.proven]

    async def _meet(self, pair: tuple[str, str]) -> bool:
        async with self.one_at_a_time:
            if pair in self.proven or not all(life in self.up for life in pair):
                return True  # the other one has done it, or one of them is gone
            try:
                await self.sing_on_all_ranks(pair, PROBE_S)
            except CanaryFailed as error:
                log.warning("%s", error)
                for life in set(pair):
                    await self._on_failed(life, str(error))
                return False
            if not all(life in self.up for life in pair):
                return True
            self.proven.add(pair)
        prefill, decode = pair
        await self._on_proven(prefill, decode)
        if decode != prefill:
            await self._on_proven(decode, prefill)
        return True


def _rank_pairs(prefills: int, decodes: int) -> list[tuple[int, int]]:
    if prefills * decodes <= ALL_RANKS_MAX:
        return list(itertools.product(range(prefills), range(decodes)))
    return [(rank % prefills, rank % decodes) for rank in range(max(prefills, decodes))]
