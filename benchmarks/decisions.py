"""What a decision of `predicted` costs a frontend: a prompt's keys, who has how much of it, and the choice.

    python -m benchmarks.decisions [--rounds 3000] [--json FILE] [--profile]

Way:   packed token ids -> Router.path -> Endpoints.cached -> Router.consider, in a frontend without sockets
In:    half of the ranks read prompts, half decode, in engines of 4 ranks, 4 engines a node, all pairs have met; each
       rank has a few requests. All readers hold the prompt's first blocks, fewer more, one in 16 all of it
Out:   µs: medians of each step, and of hash, look-up and choice together, which is what a request pays. `consider`
       looks up for itself, so the choice is what it takes beyond a look-up alone. By place: ways that stay on a node
       are known to be quicker than others. Each row is the best of three runs; its least: while nobody disturbs it
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import pstats
import time
from array import array
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from disagg.kv_events.blocks import BlockHasher
from disagg.plane.ledger import Capacity
from disagg.plane.messages import RankTaken
from disagg.registry.met import Met
from disagg.roles import Role
from disagg.routing.connections import Connections
from disagg.routing.endpoints import Endpoint, Engine
from disagg.routing.observations import Transferred
from disagg.routing.policies.predicted import Predicted
from disagg.routing.router import Router
from disagg.routing.view import RoutingView

BLOCK_TOKENS, AN_ENGINE, ENGINES_A_NODE = 64, 4, 4
CAPACITY = Capacity(64, 1 << 20, 16)
SHAPES = ((16, 500), (16, 8000), (1000, 500), (1000, 8000))  # ranks in all, tokens
RUNS = 3


class OpenClient:
    """Stands in for a connection."""

    is_open = True


@dataclass(frozen=True, slots=True)
class Decision:
    ranks: int
    tokens: int
    places: bool
    hash_us: float
    lookup_us: float
    choice_us: float
    all_us: float
    all_us_least: float


def frontend(ranks: int, random: Random) -> Router:
    router = Router(Connections(b"s" * 32), Predicted(), BlockHasher(b"s" * 32, BLOCK_TOKENS))
    endpoints, engines = router.endpoints, list[Engine]()
    endpoints.block_tokens = BLOCK_TOKENS
    for role in (Role.PREFILL, Role.DECODE):
        for number in range(ranks // 2 // AN_ENGINE):
            engines.append(_engine(role, number, len(engines)))
    known = Met()
    for decode in engines[len(engines) // 2 :]:
        for prefill in engines[: len(engines) // 2]:
            known.add(prefill.life, decode.life)
    endpoints.meet(known)
    for engine in engines:
        endpoints.open_slots(engine)
        endpoints.add(engine)
        for rank in engine.endpoints:
            rank.tells_cache = True
            requests = random.randrange(7)
            queued = random.choice((0, 0, 0, 4000)) if engine.role is Role.PREFILL else 0
            endpoints.report(rank, RankTaken(requests, 1000 * requests, to_read=queued), 1.0)
    return router


def _engine(role: Role, number: int, order: int) -> Engine:
    client: Any = OpenClient()
    name = f"{role}-{number}"
    engine = Engine(name, f"{name}#1", role, order, place=(f"node n{number // ENGINES_A_NODE}",))
    engine.endpoints = [Endpoint(engine, rank, "", client, CAPACITY) for rank in range(AN_ENGINE)]
    return engine


def learn_places(router: Router) -> None:
    """That ways off a node are slow."""
    prefill, decode = (list(router.endpoints.of(role)) for role in (Role.PREFILL, Role.DECODE))
    near = next(rank for rank in decode if rank.engine.place == prefill[0].engine.place)
    far = next((rank for rank in decode if rank.engine.place != prefill[0].engine.place), near)
    for _ in range(30):
        for rank, shared, seconds in ((near, "node", 0.01), (far, "", 0.1)):
            router.observe(Transferred(prefill[0].id, rank.id, 1000, 10**8, seconds, shared))


def fill_caches(router: Router, path: array[int], random: Random) -> None:
    for number, rank in enumerate(router.endpoints.of(Role.PREFILL)):
        share = random.choice((0.1, 0.1, 0.1, 0.3, 0.6)) if number % 16 else 1.0
        own = array("Q", random.randbytes(8 * 20))
        router.endpoints.index.store(rank.slot, path[: max(2, int(share * len(path)))] + own)


def cost(ranks: int, tokens: int, places: bool, rounds: int, profile: cProfile.Profile | None = None) -> Decision:
    random = Random(ranks)
    router = frontend(ranks, random)
    ids = array("I", random.choices(range(1000, 150_000), k=tokens))
    fill_caches(router, router.path(ids, ""), random)
    if places:
        learn_places(router)
    gc.collect()
    gc.disable()
    rows = [_run(router, ids, rounds) for _ in range(RUNS)]
    if profile is not None:
        profile.enable()
        _run(router, ids, rounds)
        profile.disable()
    gc.enable()
    hash_us, lookup_us, choice_us, all_us, least_us = min(rows, key=lambda row: row[3])
    return Decision(ranks, tokens, places, hash_us, lookup_us, choice_us, all_us, least_us)


def _run(router: Router, ids: array[int], rounds: int) -> tuple[float, ...]:
    hashing, looking, choosing, both = list[float](), list[float](), list[float](), list[float]()
    clock = time.perf_counter_ns
    for _ in range(rounds):
        began = clock()
        path = router.path(ids, "")
        hashed = clock()
        view = RoutingView(prompt_tokens=len(ids), new_tokens=300, prompt_ids=ids, path=path)
        viewed = clock()
        router.endpoints.cached(view)
        looked = clock()
        choice = router.consider(view)
        ended = clock()
        assert choice is not None
        hashing.append(hashed - began)
        looking.append(looked - viewed)
        choosing.append(ended - looked - (looked - viewed))
        both.append(hashed - began + ended - looked)
    return *(median(times) / 1e3 for times in (hashing, looking, choosing, both)), min(both) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--profile", action="store_true", help="also where the time goes, which is not counted")
    arguments = parser.parse_args()
    rows = []
    print("ranks  tokens  ways         hash  look-up  choice  in all (least), µs")
    for ranks, tokens in SHAPES:
        for places in (False, True):
            profile = cProfile.Profile() if arguments.profile else None
            row = cost(ranks, tokens, places, arguments.rounds * 16 // max(16, ranks // 8), profile)
            rows.append(asdict(row))
            ways = "by place" if places else "alike"
            print(
                f"{ranks:>5} {tokens:>7}  {ways:<9} {row.hash_us:>7.1f} {row.lookup_us:>8.1f}"
                f" {row.choice_us:>7.1f} {row.all_us:>7.1f} ({row.all_us_least:.1f})",
                flush=True,
            )
            if profile is not None:
                pstats.Stats(profile).sort_stats("tottime").print_stats(22)
    if arguments.json:
        arguments.json.write_text(f"{json.dumps(rows, indent=1)}\n")


if __name__ == "__main__":
    main()
