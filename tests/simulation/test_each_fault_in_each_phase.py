"""One request, one fault, in one phase: the table of docs/failures.md, row by row.

Two engines a role, deadlines as they are by default. A fault that does not come from the client costs it time and
nothing else; how much is asserted here, and told in the document.
"""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from disagg.coordinator.phases import Phase
from disagg.errors import Cancelled
from disagg.simulation.faults import CELLS, OF_CLIENTS, Fault, Faults
from disagg.simulation.loop import VirtualLoop
from disagg.simulation.tokens import answer
from disagg.simulation.world import SimulatedDeployment, Stream, WatchedRequest

PROMPT, OUTPUT = [*range(1000, 2500)], 100
SEEDS = range(3)

# Seconds that a fault may cost a request, in whatever phase it strikes.
COSTS_S = {
    Fault.CRASH: 2.0,  # the connection ends at once; another pair reads the prompt again
    Fault.FREEZE: 6.0,  # found within 5 s
    Fault.HOST_FREEZE: 6.0,
    Fault.DEAD_SCHEDULER: 2.0,
    Fault.PARTITION: 6.0,
    Fault.SLOW: 6.0,  # 15 times slower for 2 s: nothing is lost
    Fault.KV_EXHAUSTED: 10.0,  # for 8 s no page is free: the request waits
    Fault.ENDLESS_TRANSFER: 32.0,  # deadlines.transfer_s, then another pair
    Fault.CUT: 2.0,
    Fault.HALF_OPEN: 12.0,
    Fault.DELAY: 6.0,
    Fault.DUPLICATE: 2.0,
    Fault.STALE: 0.5,
}


async def _struck(fault: Fault, phase: Phase, seed: int) -> tuple[Stream, float]:
    """The request's stream after its end, and what the fault cost it in seconds."""
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
                loop.call_later(0.05, sim.kill, sim.host_of(stream, sim.models["decode-0"].role))

        began_s = loop.time()
        stream = sim.open([3, *PROMPT], OUTPUT)
        stream.request.on_phase = on_phase
        if phase is Phase.QUEUED:
            loop.call_later(0.01, strike)
        await asyncio.wait([stream.task], timeout=120)
        assert stream.task.done(), stream.request.history
        assert struck.is_set(), f"it never was {phase.name}: {stream.request.history}"
        cost_s = loop.time() - began_s - usual_s
        for other in others:
            await other.rest()
        await asyncio.sleep(45)  # longer than any deadline of an engine
        await sim.settle()
        return stream, cost_s


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "phase"), CELLS, ids=[f"{fault.value}-{phase.name}" for fault, phase in CELLS])
def test_one(fault: Fault, phase: Phase) -> None:
    for seed in SEEDS:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            stream, cost_s = runner.run(_struck(fault, phase, seed))
        where = f"seed {seed}: {stream.request.history} {stream.request.facts}"
        want = answer(stream.request.prompt_ids, OUTPUT, ignore_eos=True)
        if fault in OF_CLIENTS:
            assert stream.request.phase is Phase.CANCELLED, where
            assert stream.error is None or isinstance(stream.error, Cancelled), where
            assert stream.ids == want[: len(stream.ids)], where
        else:
            assert (stream.error, stream.ids) == (None, want), where
            waited_s = 1.0 if phase is Phase.QUEUED else 3.0 if phase is Phase.MIGRATING else 0.0
            assert cost_s < COSTS_S[fault] + waited_s, f"{cost_s:.2f} s, {where}"
