"""One simulated prefill and one decode engine on a virtual clock, without a plane: legs go straight in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from disagg.plane.engine import Leg
from disagg.plane.messages import Bootstrap
from disagg.roles import Role
from disagg.simulated_engine.engine import SimulatedEngine
from disagg.simulated_engine.model import Model
from disagg.simulation.loop import VirtualLoop
from disagg.simulation.network import SimNetwork

PROMPT = list(range(1000, 3000))  # in 8 chunks of 256 tokens, 0.05 s each
CHUNK_S = 0.062
TIMEOUT_S = 8.0


class Sink:
    def __init__(self) -> None:
        self.ids: list[int] = []
        self.stages: list[str] = []
        self.end: tuple[str, str] | None = None
        self.ended_at_s = 0.0
        self.stats: dict[str, float] = {}
        self.cached_tokens = 0

    def on_tokens(self, token_ids: list[int], _logprobs: object = None) -> None:
        assert self.end is None
        self.ids += token_ids

    def on_stage(self, name: str, cached_tokens: int | None = None) -> None:
        assert self.end is None
        self.stages.append(name)

    def on_end(self, reason: str, detail: str, cached_tokens: int, stats: dict[str, float], *_more: object) -> None:
        assert self.end is None, "a second last word"
        self.end, self.ended_at_s = (reason, detail), asyncio.get_running_loop().time()
        self.cached_tokens, self.stats = cached_tokens, stats


@dataclass
class SimulatedPair:
    prefill: SimulatedEngine
    decode: SimulatedEngine
    network: SimNetwork
    handles: dict[Sink, Any] = field(default_factory=dict)

    def leg(self, engine: SimulatedEngine, name: str = "", prompt: list[int] = PROMPT, **more: Any) -> Sink:
        sink = Sink()
        room, rank, dp_rank = more.get("room", 8), more.get("prefill_rank", 0), more.get("dp_rank", 0)
        point = Bootstrap("prefill-0.1", 8998, room, rank) if room is not None else None
        sampling = {"max_new_tokens": more.get("max_tokens", 1), "ignore_eos": more.get("ignore_eos", True)}
        apart = {"adapter": more.get("adapter", ""), "salt": more.get("salt", "")}
        leg = Leg(name or f"leg{len(self.handles):03}", prompt, sampling, dp_rank, point, **apart)
        self.handles[sink] = engine.submit(leg, sink)
        return sink

    def both(self, max_tokens: int = 20, **more: Any) -> tuple[Sink, Sink]:
        return self.leg(self.prefill, **more), self.leg(self.decode, max_tokens=max_tokens, **more)

    def abort(self, sink: Sink) -> None:
        for engine in (self.prefill, self.decode):
            if self.handles[sink].rank.engine is engine:
                engine.abort(self.handles[sink])

    async def over(self, *sinks: Sink, limit_s: float = 60.0) -> None:
        async with asyncio.timeout(limit_s):
            while any(sink.end is None for sink in sinks):
                await asyncio.sleep(0.01)

    def holds_nothing(self) -> bool:
        engines = (self.prefill, self.decode)
        return all(e.legs_live == e.kv_tokens_used == e.bootstrap.rooms_open == 0 for e in engines)


def on_a_pair(scenario: Callable[[SimulatedPair], Awaitable[Any]], seed: int = 1, **more: Any) -> Any:
    async def run() -> Any:
        network = SimNetwork(seed)
        times = {"bootstrap_timeout_s": TIMEOUT_S, "waiting_timeout_s": TIMEOUT_S, "chunk_tokens": 256}
        engines = []
        for name, role in (("prefill-0", Role.PREFILL), ("decode-0", Role.DECODE)):
            host = f"{name}.1"
            bootstrap = (host, 8998) if role is Role.PREFILL else None
            model = Model(role=role, **times | more)
            engines.append(
                SimulatedEngine(
                    model, life=f"{name}#1", bootstrap=bootstrap, network=network.at(host), random=Random(seed)
                )
            )
            engines[-1].start()
            await engines[-1].open()
        pair = SimulatedPair(engines[0], engines[1], network)
        try:
            return await scenario(pair)
        finally:
            for engine in engines:
                engine.stop()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(run())
