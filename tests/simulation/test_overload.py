"""Five times as many requests as fit: those that are accepted keep their deadlines, the rest hear of it at once."""

from __future__ import annotations

import asyncio

import pytest

from disagg.coordinator.limits import Limits
from disagg.errors import Overloaded
from disagg.registry.records import State
from disagg.simulation.loop import VirtualLoop
from disagg.simulation.world import SimulatedDeployment, Stream

OUTPUT = 100
SLOTS = 2 * 8  # on two decode engines
SECONDS = 60.0
TOLD_S = 0.05


async def _load(requests_a_second: float) -> tuple[list[Stream], list[tuple[str, State]], float]:
    """All streams of SECONDS of arrivals; states of engines other than READY that were seen; tokens a second."""
    limits = Limits(queue_max=16, queue_s=4.0, first_token_s=8.0)
    model = {"requests_max": 8, "step_leg_s": 0.0, "prefill_token_s": 0.0001}
    async with SimulatedDeployment(prefill=2, decode=2, seed=3, limits=limits, model=model) as sim:
        loop, streams, unwell = asyncio.get_running_loop(), [], []
        began_s = loop.time()
        for number in range(int(SECONDS * requests_a_second)):
            streams.append(sim.open([number, *range(200)], OUTPUT))
            await asyncio.sleep(1 / requests_a_second)
            records = sim.registry.records.values()
            unwell += [(r.id, r.state) for r in records if r.state is not State.READY]
        tokens = sum(len(stream.ids) for stream in streams) / (loop.time() - began_s)
        await asyncio.wait([stream.task for stream in streams])
        await sim.settle()
        return streams, unwell, tokens


@pytest.mark.slow
def test_five_times_the_capacity() -> None:
    async def scenario() -> None:
        step_s = 0.0105  # of a decode step, its jitter included
        capacity = SLOTS / (OUTPUT * step_s)
        _, _, at_capacity = await _load(capacity)
        streams, unwell, overloaded = await _load(5 * capacity)
        accepted = [stream for stream in streams if stream.error is None]
        refused = [stream for stream in streams if stream.error is not None]
        assert {type(stream.error) for stream in refused} == {Overloaded}
        assert all(len(stream.ids) == OUTPUT for stream in accepted)
        assert all(stream.request.tries <= 1 or not stream.request.facts.lost_tries for stream in accepted)
        for stream in accepted:
            request = stream.request
            assert request.timeline["first_token"] - request.received_at_s < 4.0 + 8.0
        at_once = [s for s in refused if s.request.history[-1][1] - s.request.received_at_s < TOLD_S]
        late = [s for s in refused if s not in at_once]
        assert all(s.request.history[-1][1] - s.request.received_at_s <= 4.1 for s in late), "past the queue's deadline"
        assert len(at_once) > 0.95 * len(refused)
        assert not unwell
        assert overloaded > 0.95 * at_capacity, (overloaded, at_capacity)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(scenario())
