"""What frontends know of caches, held against what the pools of simulated engines have; and some load."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

from disagg.kv_events.blocks import BlockHasher
from disagg.kv_events.events import At
from disagg.routing.connections import Connections
from disagg.routing.endpoints import Endpoint
from disagg.routing.prefix_index.index import SURE_BLOCKS
from disagg.simulated_engine.memory import KvPool
from disagg.simulation.loop import VirtualLoop
from disagg.simulation.world import BLOCK_TOKENS, SECRET, SimulatedDeployment, Stream
from tests.kv_events.two_indexes import TwoIndexes

HASHER = BlockHasher(SECRET, BLOCK_TOKENS)
TOLD_S = 0.5  # events are gathered for 20 ms, and are some milliseconds on the way
SMALL = {"kv_tokens": 4096, "requests_max": 8, "ranks": 2, "cache_block_tokens": 32}


def in_virtual_time(scenario: Callable[[], Awaitable[None]]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(scenario())  # type: ignore[arg-type]


def paths_of(pool: KvPool) -> dict[int, list[int]]:
    """Last block key -> path, of each block that the pool has."""
    ends: dict[int, tuple[list[int], bytes]] = {0: ([], b"")}
    paths: dict[int, list[int]] = {}
    for event in pool.cached:
        if isinstance(event, At):
            path, rest = ends[event.parent]
            ids = rest + event.ids
            root = path[-1] if path else HASHER.root(event.adapter, event.salt)
            new = HASHER.after(root, ids)
            whole = [*path, *new]
            ends[event.name] = (whole, ids[len(new) * BLOCK_TOKENS * 4 :])
            paths.update({key: whole[: len(path) + at] for at, key in enumerate(new, 1)})
    return paths


def endpoints(connections: Connections, sim: SimulatedDeployment) -> dict[tuple[str, int], Endpoint]:
    lives = {host.life: host.engine_id for host in sim.hosts.values()}
    by_slot = connections.endpoints._by_slot.values()
    return {(lives[e.life], e.dp_rank): e for e in by_slot if e.life in lives}


def check(sim: SimulatedDeployment) -> int:
    """Raises where a frontend's index is not what the pools hold. Returns how many blocks they hold."""
    held = 0
    for frontend in sim.frontends:
        of_rank, index = endpoints(frontend.connections, sim), frontend.connections.endpoints.index
        assert isinstance(index, TwoIndexes)
        for host in sim.hosts.values():
            for rank in host.engine.ranks:
                endpoint, paths = of_rank[host.engine_id, rank.index], paths_of(rank.pool)
                assert endpoint.tells_cache is rank.tells_cache
                assert index.exact[endpoint.slot].keys() == {tuple(path) for path in paths.values()}, endpoint.name
                assert abs(index.blocks_of(endpoint.slot) - len(paths)) <= len(paths) // 10 + SURE_BLOCKS
                for path in paths.values():
                    assert len(path) - index.depth(endpoint.slot, path) <= SURE_BLOCKS
                held += len(paths)
    return held


async def load(sim: SimulatedDeployment, random: Random, count: int) -> list[Stream]:
    """Conversations that share a beginning, on all frontends."""
    streams = []
    for _ in range(count):
        topic = random.randrange(6)
        prompt = [topic + 1] * 200 + [random.randrange(2) + 1 for _ in range(random.randrange(40, 500))]
        request = sim.request(prompt, random.randrange(1, 30))
        streams.append(Stream(random.choice(sim.frontends), request))
        await asyncio.sleep(random.random() * 0.3)
    return streams


async def over(streams: list[Stream]) -> None:
    await asyncio.gather(*(stream.rest() for stream in streams), return_exceptions=True)
