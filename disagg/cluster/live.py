"""One incarnation that is up, as the controller sees it: its record, a plane connection, who uses it.

Way:   supervisor (an engine has started) -> [LiveEngine] -> watch, prover, canaries, drain
Owns:  the controller's plane connection to it
"""

from __future__ import annotations

from disagg.cluster.runtime import Runtime
from disagg.plane.client import PlaneClient
from disagg.plane.messages import RankHealth, RankTaken
from disagg.registry.records import EngineRecord
from transfer.canary import RankEndpoint


class LiveEngine:
    def __init__(self, record: EngineRecord, secret: bytes, runtime: Runtime) -> None:
        self.record, self._secret, self._runtime, self._now_s = record, secret, runtime, runtime.now_s
        self.client = self._make_client()
        self.others_requests = 0  # granted to frontends, as the host reported last
        self._ranks: list[RankHealth] = []  # as they were told last
        self.quiet_since_s = self._now_s()
        self.is_retiring = False  # gets no canary any more

    @property
    def life(self) -> str:
        return self.record.life

    async def reconnect(self, limit_s: float) -> None:
        """Raises LegLost."""
        self.client.close()
        self.client = self._make_client()
        await self.client.connect(limit_s)

    async def health(self, limit_s: float) -> list[RankHealth]:
        """Raises LegLost, and TimeoutError."""
        self._ranks = await self.client.health(limit_s)
        return self._ranks

    @property
    def sign_age_s(self) -> float:
        """Since the last sign of life of its host, or of the rank that is slowest: it may be busy, or out of order."""
        return max(self.client.silence_s, *(rank.beat_age_s for rank in self._ranks), 0.0)

    def quiet_s(self) -> float:
        """Seconds for which no request but our own canaries has run here; 0 while one runs."""
        return 0.0 if self.others_requests else self._now_s() - self.quiet_since_s

    def endpoints(self) -> list[RankEndpoint]:
        record = self.record
        return [
            RankEndpoint(record.life, rank, record.ranks, record.bootstrap, self.client) for rank in range(record.ranks)
        ]

    def _make_client(self) -> PlaneClient:
        record = self.record
        return PlaneClient(
            record.plane,
            record.incarnation,
            self._secret,
            lambda _why: None,
            on_taken=self._taken,
            network=self._runtime.network,
            now_s=self._now_s,
        )

    def _taken(self, ranks: list[RankTaken]) -> None:
        others = sum(rank.requests - rank.canaries for rank in ranks)
        if others or self.others_requests:
            self.quiet_since_s = self._now_s()
        self.others_requests = others
