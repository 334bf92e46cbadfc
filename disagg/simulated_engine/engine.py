"""A simulated engine: SGLang's protocol and SGLang's faults, without a model.

Way:   plane server -> [SimulatedEngine.submit] -> Rank -> a leg's sink; two engines meet over the same network
In:    legs, as SGLang's engine gets them; a model of how long things take; clock, randomness and network passed in
Out:   tokens that follow from the whole prefix (tokens.py), loads, health, KV events
Fails: as SGLang does, seen (engines-here.md) or read in its source (field-notes B):
       - a prefill leg that is aborted tells decode nothing: decode ends at `waiting_timeout_s`
       - a decode leg that is aborted while prefill computes: prefill computes the whole prompt, then fails
       - an abort takes effect at the end of the running step; a second one does nothing; ids are matched by prefix
       - an abort before the dispatch waits for it (SGLang loses it, which its wrapper here makes good;
         `loses_early_aborts` shows the trap itself)
       - room 0 never lands; a room that is not congruent to the prefill rank: prefill ends as if well, decode hangs
       - two live requests in one room: both decode legs fail, one prefill leg fails, the other waits until aborted
       - one leg alone times out: prefill in bootstrapping; decode, which has no deadline before it sent its
         metadata, in waiting for KV
       - without a room, an engine of a pair refuses (400), and any engine an adapter that it has not
       - with an adapter on one leg alone, tokens of two models are mixed, and nobody is told
       - one that embeds dies of a leg that wants tokens; one that makes tokens refuses a leg that wants a vector
       - a prefill that is gone is found by heartbeats, never by the lack of answers from a dead scheduler
       - aborted in landing, decode's pages are kept until prefill says that it writes no more, or for
         `release_timeout_s`
       Left out: retraction to host memory (a full pool fails the leg, which may be tried again), n > 1 in one room,
       speculative decoding, grammars, orphan rooms that outlive their decode engine's connection
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from disagg.adapters import Adapter
from disagg.kv_events.book import KvBook
from disagg.plane.engine import EngineFacts, Leg, LegSink
from disagg.plane.messages import MetricFamily, RankHealth, RankLoad
from disagg.plane.network import TCP, Network
from disagg.roles import Role
from disagg.simulated_engine.leg import At, SimulatedLeg
from disagg.simulated_engine.model import Model
from disagg.simulated_engine.peering import Allocated
from disagg.simulated_engine.peers import BootstrapServer, Peer
from disagg.simulated_engine.poison import DEATH_S
from disagg.simulated_engine.rank import Rank, RankLeg

SICK_AFTER_S = 3.0
JITTER = 0.1  # of each duration


class SimulatedEngine:
    """`start`, then `open` on the loop. `life` names this incarnation, as `drop_peer` will. `kv` is told what its ranks
    have cached; None: nobody is."""

    def __init__(
        self,
        model: Model,
        *,
        life: str = "",
        bootstrap: tuple[str, int] | None = None,
        network: Network = TCP,
        random: Random | None = None,
        wall_s: Callable[[], float] = time.time,
        kv: KvBook | None = None,
    ) -> None:
        self.model, self.life, self.network, self.kv = model, life, network, kv
        self._bootstrap_at, self._random, self._wall_s = bootstrap, random or Random(), wall_s
        self.ranks = [Rank(self, index) for index in range(model.ranks)]
        self.bootstrap = BootstrapServer(model, network)
        self.peers: dict[tuple[str, int], Peer] = {}
        self._slowness = 1.0
        self._aborts_to_lose = 0
        self._transfers_to_lose = 0
        self.is_gone = False
        self.dropped_peers: list[str] = []
        self.adapters: dict[str, Adapter] = {}
        self._adapter_trouble = ""
        self.delivered_to: set[str] = set()  # lives that KV has gone to
        self.on_death: Callable[[], None] = lambda: None  # a scheduler has died of a request: its host ends, too

    # Engine

    def start(self) -> EngineFacts:
        model = self.model
        return EngineFacts(
            ranks=model.ranks,
            context_length=model.context_length,
            kv_tokens=self.ranks[0].pool.tokens_total,
            request_tokens_max=min(model.context_length, self.ranks[0].pool.tokens_total),
            requests_max=model.requests_max,
            page_size=model.page_size,
            chunk_tokens=model.chunk_tokens,
            caches_prompts=self.ranks[0].tells_cache,
        )

    async def open(self) -> None:
        """On the loop that the legs will come on. A prefill engine then listens on its bootstrap address."""
        for rank in self.ranks:
            rank.begin_to_tell()
        if self._bootstrap_at is not None:
            await self.bootstrap.listen(*self._bootstrap_at)

    def submit(self, leg: Leg, sink: LegSink) -> object:
        simulated = SimulatedLeg(leg, sink, self.ranks[leg.dp_rank])
        refusal = self._refusal(leg)
        if self.is_gone:
            pass
        elif self.model.role is Role.EMBEDDING and not leg.embeds:
            self.dies()
        elif refusal:
            simulated.at = At.OVER
            asyncio.get_running_loop().call_soon(sink.on_end, "error", refusal, 0, {})
        else:
            simulated.rank.submit(simulated)
        return simulated

    def abort(self, handle: object) -> None:
        assert isinstance(handle, SimulatedLeg)
        if handle.is_over or handle.abort_is_asked:
            return
        handle.abort_is_asked = True
        if self._aborts_to_lose:
            self._aborts_to_lose -= 1
        else:
            handle.rank.abort(handle)

    def loads(self) -> list[RankLoad]:
        """The newest load of each rank. A scheduler that hangs or is dead keeps its last time stamp, whose age shows
        it."""
        now_s = self._wall_s()
        return [
            RankLoad(
                dp_rank=rank.index,
                running=rank.running_count,
                waiting=len(rank.legs) - rank.running_count,
                kv_tokens_used=rank.pool.tokens_used,
                kv_tokens_total=rank.pool.tokens_total,
                reported_at_s=now_s - rank.beat_age_s,
            )
            for rank in self.ranks
        ]

    def metrics(self, labels: str) -> list[MetricFamily]:
        return []

    def health(self) -> list[RankHealth]:
        return [
            RankHealth(rank.index, self._sickness(rank), rank.beat_age_s, rank.step_longest_s) for rank in self.ranks
        ]

    async def flush_cache(self, wait_s: float) -> str:
        """Looks once more when `wait_s` is over."""
        if self.legs_live and wait_s:
            await asyncio.sleep(wait_s)
        if self.legs_live:
            return f"{self.legs_live} legs run or wait"
        for rank in self.ranks:
            rank.pool.flush()
        return ""

    def drop_peer(self, life: str) -> None:
        self.dropped_peers.append(life)
        self.bootstrap.drop(life)
        for peer in self.peers.values():
            peer.drop(life)

    async def load_adapter(self, adapter: Adapter) -> None:
        if why := self._adapter_trouble or _why_not_read(adapter):
            raise ValueError(why)
        self.adapters[adapter.name] = adapter

    async def unload_adapter(self, name: str) -> None:
        if self.adapters.pop(name, None) is None:
            raise ValueError(f"LoRA with name {name} does not exist.")

    def stop(self) -> None:
        """Ends the engine, as a crash does: others notice only that their connections end."""
        self.is_gone = True
        for rank in self.ranks:
            rank.die()
        self.bootstrap.close()
        for peer in self.peers.values():
            peer.close()

    # faults, at any time

    def freeze(self) -> None:
        """All ranks stand still; the host answers on."""
        for rank in self.ranks:
            rank.freeze()

    def thaw(self) -> None:
        for rank in self.ranks:
            rank.thaw()

    def kill_scheduler(self, dp_rank: int = 0) -> None:
        """The scheduler's process is gone; the host and the bootstrap server live on."""
        self.ranks[dp_rank].die()

    def slow(self, factor: float) -> None:
        """From now on everything takes `factor` times as long."""
        self._slowness = factor

    def dies(self) -> None:
        """Of a request (poison.py)."""
        for rank in self.ranks:
            rank.die()
        asyncio.get_running_loop().call_later(DEATH_S, self.on_death)

    def lose_aborts(self, count: int = 1) -> None:
        self._aborts_to_lose += count

    def lose_transfers(self, count: int = 1) -> None:
        """The next so many transfers never end."""
        self._transfers_to_lose += count

    def refuse_adapters(self, why: str) -> None:
        """From now on no adapter can be loaded here; "": any can."""
        self._adapter_trouble = why

    def exhaust_kv(self, is_exhausted: bool = True) -> None:
        """Makes the KV pool act as if full, until it is called with False."""
        for rank in self.ranks:
            rank.pool.is_exhausted = is_exhausted
            rank.go_on()

    # gauges

    @property
    def is_lame(self) -> bool:
        """It does all but move KV."""
        return self._transfers_to_lose > 1

    @property
    def legs_live(self) -> int:
        return sum(len(rank.legs) for rank in self.ranks)

    @property
    def kv_tokens_used(self) -> int:
        return sum(rank.pool.tokens_used for rank in self.ranks)

    # from the ranks

    def lasting(self, duration_s: float) -> float:
        """How long a computation or a transfer takes here and now."""
        return duration_s * self._slowness / self.model.speed * (1 + JITTER * self._random.random())

    def loses_a_transfer(self) -> bool:
        is_lost = self._transfers_to_lose > 0
        self._transfers_to_lose -= is_lost
        return is_lost

    def meet(self, leg: RankLeg) -> None:
        """A leg has reached its scheduler and looks for the other one."""
        if self.model.role is Role.PREFILL:
            self.bootstrap.meet(leg)
        elif leg.is_fake:
            leg.rank.allocate(leg)
        else:
            assert leg.leg.bootstrap is not None
            at = leg.leg.bootstrap.host, leg.leg.bootstrap.port
            if at not in self.peers:
                self.peers[at] = Peer(self.model, self.life, self.network, *at)
            self.peers[at].meet(leg)

    def allocated(self, leg: RankLeg) -> None:
        """A decode leg has its memory."""
        if leg.peer is None:
            leg.rank.run_on_garbage(leg)
            return
        leg.peer.send(Allocated(leg.room))
        leg.rank.later(leg, self.model.waiting_timeout_s, leg.rank.timed_out, leg, At.LANDING, "WaitingForInput")

    def forget_room(self, leg: RankLeg) -> None:
        """The leg waits for nobody any more."""
        self.bootstrap.forget(leg)
        if leg.peer is not None:
            leg.peer.forget(leg)

    def _refusal(self, leg: Leg) -> str:
        if leg.embeds and self.model.role is not Role.EMBEDDING:
            return "This model does not appear to be an embedding model by default."
        if self.model.role in (Role.PREFILL, Role.DECODE) and leg.bootstrap is None:
            return "Disaggregated request received without bootstrap room id"
        if leg.adapter and leg.adapter not in self.adapters:
            return f"Got LoRA adapter that has never been loaded: {leg.adapter}"
        tokens = len(leg.prompt_ids) + leg.sampling["max_new_tokens"]
        if tokens > min(self.model.context_length, self.ranks[0].pool.tokens_total):
            return f"{tokens} tokens are more than the engine can hold"
        return ""

    def _sickness(self, rank: Rank) -> str:
        if rank.is_dead:
            return "the scheduler's process is gone"
        if rank.is_frozen and rank.beat_age_s > SICK_AFTER_S:
            return f"the scheduler has not come round for {rank.beat_age_s:.1f} s"
        return ""


def _why_not_read(adapter: Adapter) -> str:
    config = Path(adapter.path, "adapter_config.json")
    return "" if config.is_file() else f"[Errno 2] No such file or directory: '{config}'"
