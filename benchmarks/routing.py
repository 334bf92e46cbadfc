"""What a pick and a change of load cost in a frontend, by the number of ranks.

    python -m benchmarks.routing [--json FILE]

Way:   engines without sockets -> Router and Admission, which serve -> medians in µs
Out:   a pick is Router.consider, view of the request and reservation included; a change is one leg that ends: its
       place is given back, and the empty queue is served. Requests run throughout, a few on each rank
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from disagg.coordinator.admission import Admission
from disagg.plane.ledger import Capacity
from disagg.registry.met import Met
from disagg.roles import Role
from disagg.routing.connections import Connections
from disagg.routing.endpoints import Endpoint, Engine
from disagg.routing.reservation import Reservation
from disagg.routing.router import Router
from disagg.routing.view import RoutingView

SHAPES = {2: (1,), 64: (4, 1), 256: (4, 1), 1000: (4, 1)}  # ranks in all -> ranks of an engine
MET = {"all": 1.0, "a tenth": 0.1}  # of all pairs of engines
ON_A_RANK = 3  # requests, on average
CAPACITY = Capacity(64, 1 << 20, 16)
ROUNDS = 3000


class OpenClient:
    """Stands in for a connection."""

    is_open = True


@dataclass(frozen=True, slots=True)
class RoutingCost:
    ranks: int  # half of them prefill
    ranks_an_engine: int
    met: str  # which pairs of engines
    pick_us: float
    pick_us_p90: float
    change_us: float
    change_us_p90: float
    full_us: float  # a pick that finds no decode rank with room: what one who waits costs at each change


def deployment(ranks: int, an_engine: int, met: float, random: Random) -> Router:
    router = Router(Connections(b"s" * 32))
    count = ranks // 2 // an_engine
    known = Met()
    lives = [f"prefill-{number}#1" for number in range(count)]
    for number, life in enumerate(lives):
        router.endpoints.add(_engine(life, Role.PREFILL, number, an_engine))
    for number in range(count):
        engine = _engine(f"decode-{number}#1", Role.DECODE, count + number, an_engine)
        for life in [life for life in lives if random.random() < met] or [random.choice(lives)]:
            known.add(life, engine.life)
        router.endpoints.add(engine)
    router.endpoints.meet(known)
    return router


def _engine(life: str, role: Role, number: int, ranks: int) -> Engine:
    client: Any = OpenClient()
    engine = Engine(life, life, role, number)
    engine.endpoints = [Endpoint(engine, rank, "", client, CAPACITY) for rank in range(ranks)]
    return engine


def cost(ranks: int, an_engine: int, met: str) -> RoutingCost:
    random = Random(ranks)
    router = deployment(ranks, an_engine, MET[met], random)
    admission = Admission(router, queue_max=1, queue_s=1, no_pair_s=1, now_s=time.monotonic)
    router.endpoints.on_change = admission.serve
    prompts = [random.choices(range(1000), k=random.randint(100, 4000)) for _ in range(64)]
    picks, changes = list[int](), list[int]()
    running: deque[Reservation] = deque()
    clock = time.perf_counter_ns

    def pick() -> Reservation:
        prompt = random.choice(prompts)
        began = clock()
        reservation = _pick(router, RoutingView(prompt_tokens=len(prompt), new_tokens=300, prompt_ids=prompt))
        picks.append(clock() - began)
        assert reservation is not None
        return reservation

    def release(reservation: Reservation) -> None:
        for endpoint in reservation.held:
            began = clock()
            reservation.release_leg(endpoint)
            changes.append(clock() - began)

    for _ in range(ON_A_RANK * ranks // 2):
        running.append(pick())
    picks.clear()
    gc.disable()
    for _ in range(ROUNDS):
        running.rotate(random.randrange(len(running)))
        release(running.popleft())
        running.append(pick())
    gc.enable()
    for endpoint in list(router.endpoints.of(Role.DECODE)):
        endpoint.on_refused(1)
    return RoutingCost(ranks, an_engine, met, *_told(picks), *_told(changes), _full_us(router))


def _pick(router: Router, request: RoutingView) -> Reservation | None:
    choice = router.consider(request)
    return None if choice is None else router.endpoints.reserve(choice, request)


def _full_us(router: Router) -> float:
    request, times = RoutingView(prompt_tokens=1000, new_tokens=300), []
    for _ in range(300):
        began = time.perf_counter_ns()
        assert _pick(router, request) is None
        times.append(time.perf_counter_ns() - began)
    return median(times) / 1e3


def _told(times_ns: list[int]) -> tuple[float, float]:
    """Median and p90, in µs."""
    times_ns.sort()
    return median(times_ns) / 1e3, times_ns[len(times_ns) * 9 // 10] / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    cost(64, 1, "all")  # warm-up, not counted
    rows = []
    print("ranks  an engine  have met   pick µs (p90)   change µs (p90)   no room µs")
    for ranks, shapes in SHAPES.items():
        for an_engine in shapes:
            for met in MET:
                row = cost(ranks, an_engine, met)
                rows.append(asdict(row))
                print(
                    f"{ranks:>5} {an_engine:>10}  {met:<8} {row.pick_us:>8.1f} ({row.pick_us_p90:.0f}) "
                    f"{row.change_us:>11.1f} ({row.change_us_p90:.0f}) {row.full_us:>12.1f}",
                    flush=True,
                )
    if arguments.json:
        arguments.json.write_text(f"{json.dumps(rows, indent=1)}\n")


if __name__ == "__main__":
    main()
