"""Whatever happens in whatever order: no room twice, everything given back, one end a request, no wrong token."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from disagg.coordinator.limits import Limits
from disagg.coordinator.phases import LIVE, Phase
from disagg.simulated_engine.tokens import answer
from disagg.simulation.loop import VirtualLoop
from disagg.simulation.world import SimulatedDeployment, Stream

LIMITS = Limits(no_pair_s=20.0, queue_s=20.0, bootstrap_s=5.0, transfer_s=5.0, first_token_s=10.0, next_token_s=5.0)
ENDS = {Phase.FINISHED, Phase.FAILED, Phase.CANCELLED}


class AnyOrder(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 1 << 30))
    def start(self, seed: int) -> None:
        self.runner = asyncio.Runner(loop_factory=VirtualLoop)
        self.sim = SimulatedDeployment(prefill=2, decode=2, seed=seed, limits=LIMITS, model={"requests_max": 4})
        self.streams: list[Stream] = []
        self.runner.run(self.sim.__aenter__())

    @rule(prompt=st.integers(1, 400), tokens=st.integers(1, 80))
    def arrive(self, prompt: int, tokens: int) -> None:
        async def opened() -> Stream:
            return self.sim.open([len(self.streams), *range(prompt)], tokens)

        self.streams.append(self.runner.run(opened()))

    @precondition(lambda self: self.streams)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        stream = data.draw(st.sampled_from(self.streams))
        self.runner.run(stream.leave())

    @precondition(lambda self: self.streams)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        stream = data.draw(st.sampled_from(self.streams))

        async def cancelled() -> bool:
            return stream.frontend.coordinator.cancel(stream.request.id)

        assert self.runner.run(cancelled()) in (True, False)

    @rule(number=st.integers(0, 3), how=st.sampled_from(["kill", "freeze", "cut", "lose a transfer", "lose an abort"]))
    def break_something(self, number: int, how: str) -> None:
        async def broken() -> None:
            host = list(self.sim.hosts.values())[number]
            match how:
                case "kill":
                    host.kill()
                case "freeze":
                    host.engine.freeze()
                case "cut":
                    for link in self.sim.network.links_of(host.name):
                        link.cut()
                case "lose a transfer":
                    host.engine.lose_transfers()
                case _:
                    host.engine.lose_aborts()

        self.runner.run(broken())

    @rule(seconds=st.sampled_from([0.0005, 0.005, 0.05, 0.5, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.runner.run(asyncio.sleep(seconds))

    def teardown(self) -> None:
        if not hasattr(self, "runner"):
            return
        try:
            self.runner.run(self._all_over())
        finally:
            self.runner.close()

    async def _all_over(self) -> None:
        if self.streams:
            _, late = await asyncio.wait([stream.task for stream in self.streams], timeout=300)
            assert not late, [stream.request.history for stream in self.streams if not stream.task.done()]
        for stream in self.streams:
            request = stream.request
            assert request.phase in ENDS
            assert request.phase not in LIVE
            want = answer(request.prompt_ids, request.max_tokens, ignore_eos=True)
            assert stream.ids == want[: len(stream.ids)], "a token was lost, doubled or another"
            if request.phase is Phase.FINISHED:
                assert stream.ids == want
        await asyncio.sleep(40)  # longer than any deadline of an engine
        await self.sim.settle()
        await self.sim.__aexit__(None, None, None)


TestAnyOrder = pytest.mark.slow(AnyOrder.TestCase)
TestAnyOrder.settings = settings(
    max_examples=20, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
