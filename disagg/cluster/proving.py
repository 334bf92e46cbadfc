"""Who has met whom: no pair of incarnations serves before a real transfer between them has succeeded.

Way:   supervisor (an engine is up) -> [Prover] -> canaries on every rank -> READY, published in the registry
In:    records of engines that are up; out: their `peers`, and the state READY
Owns:  the controller's own plane connections
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from disagg.coordinator.attempt import Pair
from disagg.coordinator.coordinator import Coordinator, Limits
from disagg.errors import LegLost
from disagg.plane.client import PlaneClient
from disagg.registry.records import EngineRecord, Role
from disagg.routing.table import EngineTable, Place
from transfer.canary import CanaryFailed, sing

log = logging.getLogger(__name__)

CANARY_LIMITS = Limits(no_pair_s=1.0, first_token_s=30.0, next_token_s=30.0, request_s=60.0)
RETRY_S = 2.0


class Prover:
    """`on_proven(life, peer life)` is called for both sides of each success; `on_failed(life, why)` likewise."""

    def __init__(
        self,
        secret: bytes,
        on_proven: Callable[[str, str], Awaitable[None]],
        on_failed: Callable[[str, str], Awaitable[None]],
    ) -> None:
        self._secret, self._on_proven, self._on_failed = secret, on_proven, on_failed
        self._coordinator = Coordinator(EngineTable(secret), CANARY_LIMITS)
        self._up: dict[str, tuple[EngineRecord, PlaneClient]] = {}
        self._proven: set[tuple[str, str]] = set()
        self._one_at_a_time = asyncio.Lock()  # canaries would slow each other down

    async def add(self, record: EngineRecord) -> None:
        """The engine is up. Returns when it has met every engine that was up then, however many tries that took."""
        client = PlaneClient(record.plane, record.incarnation, self._secret, lambda _why: None)
        await client.connect()
        self._up[record.life] = (record, client)
        if record.role is Role.AGGREGATED:
            await self._until_it_sings(record.life, record.life)
        for peer, _ in list(self._up.values()):
            match record.role, peer.role:
                case Role.PREFILL, Role.DECODE:
                    await self._until_it_sings(record.life, peer.life)
                case Role.DECODE, Role.PREFILL:
                    await self._until_it_sings(peer.life, record.life)

    def remove(self, life: str) -> None:
        """The incarnation is dead: the others drop what they hold of it."""
        if life not in self._up:
            return
        _, client = self._up.pop(life)
        client.close()
        self._proven = {pair for pair in self._proven if life not in pair}
        for _, other in self._up.values():
            other.tell_peer_gone(life)

    def close(self) -> None:
        for _, client in self._up.values():
            client.close()

    async def _until_it_sings(self, prefill: str, decode: str) -> None:
        while prefill in self._up and decode in self._up:
            async with self._one_at_a_time:
                if (prefill, decode) in self._proven:
                    return
                try:
                    await self._sing_on_all_ranks(prefill, decode)
                except (CanaryFailed, LegLost) as error:
                    log.warning("%s", error)
                    for life in {prefill, decode}:
                        await self._on_failed(life, str(error))
                else:
                    self._proven.add((prefill, decode))
                    await self._on_proven(prefill, decode)
                    if decode != prefill:
                        await self._on_proven(decode, prefill)
                    return
            await asyncio.sleep(RETRY_S)

    async def _sing_on_all_ranks(self, prefill: str, decode: str) -> None:
        (p, p_client), (d, d_client) = self._up[prefill], self._up[decode]
        for rank in range(max(p.ranks, d.ranks)):
            place = Place(d.id, d.life, rank % d.ranks, d.ranks, d.bootstrap, d_client)
            other = Place(p.id, p.life, rank % p.ranks, p.ranks, p.bootstrap, p_client)
            await sing(self._coordinator, Pair(None if p is d else other, place))
