"""`python -m disagg.simulation.table`: what each fault costs a request in each phase, as docs/failures.md tells it.

Way:   one request, one fault in one phase -> [strike_once] -> SimulatedDeployment, two engines a role
Out:   a Markdown table: seconds that the client waits longer, the worst of three seeds, on the virtual clock
Fails: a request that does not end, or never comes to the phase, is an AssertionError with its history
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from dataclasses import dataclass
from random import Random

from disagg.coordinator.phases import Phase
from disagg.errors import RequestError
from disagg.roles import Role
from disagg.simulated_engine.tokens import answer
from disagg.simulation.faults import (
    CELLS,
    DELAY_S,
    EXHAUSTED_S,
    HALF_OPEN_S,
    PARTITION_S,
    PHASES,
    SLOW_FACTOR,
    SLOW_S,
    Fault,
    Faults,
)
from disagg.simulation.loop import VirtualLoop
from disagg.simulation.world import SimulatedDeployment, WatchedRequest

PROMPT, OUTPUT = [*range(1000, 2500)], 100
SEEDS = range(3)
HANGS_S = 120.0
FORGOTTEN_S = 45.0  # longer than any deadline of an engine: what it held for the request is gone

ROWS = {
    Fault.CRASH: "an engine crashes",
    Fault.FREEZE: "its scheduler hangs",
    Fault.HOST_FREEZE: "its whole host hangs",
    Fault.DEAD_SCHEDULER: "its scheduler is dead behind a host and a bootstrap server that answer",
    Fault.PARTITION: f"its host is cut off for {PARTITION_S:g} s",
    Fault.SLOW: f"it is {SLOW_FACTOR:g} times slower for {SLOW_S:g} s",
    Fault.KV_EXHAUSTED: f"no KV page is free for {EXHAUSTED_S:g} s",
    Fault.BROKEN_LANE: "no transfer of it ends any more, and none is under way",
    Fault.ENDLESS_TRANSFER: "a transfer never ends (`deadlines.transfer_s`, 30)",
    Fault.CUT: "a connection breaks",
    Fault.HALF_OPEN: f"a connection is half-open for {HALF_OPEN_S:g} s",
    Fault.DELAY: f"frames come {DELAY_S:g} s late",
    Fault.DUPLICATE: "a frame comes twice",
    Fault.STALE: "a frame of an earlier incarnation",
}


@dataclass(frozen=True, slots=True)
class Struck:
    """A request after its end, and what the fault cost it."""

    request: WatchedRequest
    token_ids: list[int]
    error: RequestError | None
    cost_s: float

    @property
    def wanted_ids(self) -> list[int]:
        return answer(self.request.prompt_ids, OUTPUT, ignore_eos=True)


def strike_once(fault: Fault, phase: Phase, seed: int) -> Struck:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(_strike_once(fault, phase, seed))


async def _strike_once(fault: Fault, phase: Phase, seed: int) -> Struck:
    async with SimulatedDeployment(prefill=2, decode=2, seed=seed, model={"requests_max": 1}) as sim:
        loop, random, struck = asyncio.get_running_loop(), Random(seed), asyncio.Event()
        undisturbed = sim.open([1, *PROMPT], OUTPUT)
        began_s = loop.time()
        await undisturbed.rest()
        usual_s = loop.time() - began_s
        faults = Faults(sim, lambda _engine, _seconds: None)
        busy = {Phase.QUEUED: 2, Phase.MIGRATING: 1}.get(phase, 0)  # decode engines: so these phases last
        others = [sim.open([2, number], 40 if phase is Phase.QUEUED else 150) for number in range(busy)]
        await asyncio.sleep(0.02)
        if phase is Phase.BOOTSTRAPPING:  # so does this one: engines hear of each other late
            names = {host.name for host in sim.hosts.values()}
            for link in sim.network.links.values():
                link.delay_s = 0.02 if names.issuperset(link.hosts) else 0.0

        def strike() -> None:
            if not struck.is_set() and stream.request.phase is phase:
                struck.set()
                faults.strike(fault, stream, random)

        def on_phase(request: WatchedRequest) -> None:
            if request.phase is phase is Phase.RESERVED:
                strike()  # a moment later both legs are dispatched
            elif request.phase is phase:
                loop.call_soon(strike)
            elif phase is Phase.MIGRATING and request.phase is Phase.DECODING and request.tries == 1:
                loop.call_later(0.05, sim.host_of(stream, Role.DECODE).kill)

        began_s = loop.time()
        stream = sim.open([3, *PROMPT], OUTPUT)
        stream.request.on_phase = on_phase
        if phase is Phase.QUEUED:
            loop.call_later(0.01, strike)
        await asyncio.wait([stream.task], timeout=HANGS_S)
        assert stream.task.done(), stream.request.history
        assert struck.is_set(), f"it never was {phase.name}: {stream.request.history}"
        cost_s = loop.time() - began_s - usual_s
        for other in others:
            await other.rest()
        await asyncio.sleep(FORGOTTEN_S)
        await sim.settle()
        return Struck(stream.request, stream.ids, stream.error, cost_s)


def main() -> None:
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets of strings is part of a run
        command = [sys.executable, "-m", "disagg.simulation.table"]
        os.execve(sys.executable, command, os.environ | {"PYTHONHASHSEED": "0"})
    logging.getLogger("disagg").setLevel(logging.CRITICAL)  # every fault is a warning to somebody
    say = sys.stdout.write
    say(f"| fault | {' | '.join(phase.name.lower() for phase in PHASES)} |\n")
    say(f"| --- |{' --- |' * len(PHASES)}\n")
    for fault, row in ROWS.items():
        say(f"| {row} | {' | '.join(_cell(fault, phase) for phase in PHASES)} |\n")
        sys.stdout.flush()


def _cell(fault: Fault, phase: Phase) -> str:
    if (fault, phase) not in CELLS:
        return "–"
    struck = [strike_once(fault, phase, seed) for seed in SEEDS]
    for each in struck:
        assert (each.error, each.token_ids) == (None, each.wanted_ids), each.request.history
    return f"{max(0.0, *(each.cost_s for each in struck)):.1f}"


if __name__ == "__main__":
    main()
