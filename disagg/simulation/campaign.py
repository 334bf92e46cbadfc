"""A soak: many requests on a simulated deployment, with faults of every kind, in virtual time.

Way:   workload -> [Campaign] -> SimulatedDeployment; faults aimed at requests in each phase; the referee looks on
In:    how many requests, and a seed: it decides everything
Out:   strikes, outcomes, an event hash; a violation with the timeline of its request, when something did not hold
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import deque
from random import Random

from disagg.coordinator.limits import Limits
from disagg.coordinator.phases import NEXT, Phase
from disagg.policy_names import DEFAULT, LEAST_LOADED
from disagg.simulation.faults import CELLS, KILLERS, OF_CLIENTS, PHASES, Fault, Faults
from disagg.simulation.loop import VirtualLoop
from disagg.simulation.outcome import Outcome, Strike
from disagg.simulation.referee import CANARIES_S, Entry, Referee
from disagg.simulation.workload import Workload
from disagg.simulation.world import SimulatedDeployment, Stream, WatchedRequest

LIMITS = Limits(
    no_pair_s=10.0,
    queue_s=15.0,
    bootstrap_s=6.0,
    first_token_s=12.0,
    transfer_s=4.0,
    next_token_s=6.0,
    request_s=90.0,
    queue_max=512,
    retry_limit=5,
    migration_limit=5,
)
SHARED = {"requests_max": 64, "tokens_per_step": 4, "cache_block_tokens": 64, "chunk_tokens": 256}
PREFILL = {"prefill_token_s": 0.0001, "step_s": 0.005, "transfer_bytes_per_s": 1e8}
DECODE = {"step_s": 0.2}
ENGINES = 4  # of each role
POLICIES = (DEFAULT, 3), (LEAST_LOADED, 2)  # and how many frontends go by it: a seed's is that of its remainder
SICK_MAX = 2  # engines that may be out of order at a time
GAP_REQUESTS = 40  # between two faults
SWEEP_S = 0.25


class Campaign:
    """`plan`: exactly these strikes; without one, faults are dealt from a shuffled deck of all cells."""

    def __init__(
        self, seed: int, requests: int, plan: list[Strike] | None = None, gap_requests: int = GAP_REQUESTS
    ) -> None:
        self.outcome, self._gap = Outcome(seed, requests), gap_requests
        self._plan = None if plan is None else {(s.index, s.phase, s.nth): s.fault for s in plan}
        self._struck_phases = {(s.index, s.phase) for s in plan or []}
        self._open: dict[Phase, deque[Fault]] = {phase: deque() for phase in PHASES}
        self._deck: list[tuple[Fault, Phase]] = []
        self._random = Random(seed)

    async def run(self) -> Outcome:
        loop, outcome = asyncio.get_running_loop(), self.outcome
        workload = Workload()
        outcome.policy, frontends = POLICIES[outcome.seed % len(POLICIES)]
        async with SimulatedDeployment(
            ENGINES,
            ENGINES,
            seed=outcome.seed,
            frontends=frontends,
            policy=outcome.policy,
            limits=LIMITS,
            model=SHARED,
            prefill_model=PREFILL,
            decode_model=DECODE,
        ) as world:
            self._world, self._referee = world, Referee(world, outcome)
            self._faults = Faults(world, self._referee.disturbed)
            referee = self._referee
            tasks_before, began_s = len(asyncio.all_tasks()) + 1, loop.time()  # one more: the sweeper's
            sweeper = loop.create_task(self._sweep())
            for index in range(outcome.requests):
                asked = workload[index]
                wait_s = began_s + asked.at_s - loop.time()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                if outcome.violation is not None:
                    break
                self._deal(index)
                request = world.request(asked.prompt, asked.max_tokens, ignore_eos=asked.ignore_eos)
                request.on_phase = self._on_phase
                self._begin(index, request)
            if outcome.violation is None:
                await self._rest(tasks_before)
            sweeper.cancel()
            outcome.virtual_s = loop.time() - began_s
            for entry in list(referee.entries.values()):
                entry.stream.task.cancel()
            await asyncio.sleep(0.1)
        return outcome

    def _begin(self, index: int, request: WatchedRequest) -> None:
        referee, frontends = self._referee, self._world.frontends
        stream = Stream(frontends[index % len(frontends)], request)
        entry = referee.entries[request.id] = Entry(index, stream)
        stream.task.add_done_callback(lambda _task: referee.ended(entry))
        self.outcome.live_max = max(self.outcome.live_max, len(referee.entries))
        if self._open[Phase.QUEUED] or (index, Phase.QUEUED) in self._struck_phases:
            # Once its task has run: does it really wait?
            asyncio.get_running_loop().call_soon(self._consider, entry, Phase.QUEUED)

    async def _sweep(self) -> None:
        while self.outcome.violation is None:
            self._referee.sweep()
            await asyncio.sleep(SWEEP_S)

    async def _rest(self, tasks_before: int) -> None:
        """Waits until all requests have ended and all engines are back; then nothing may be held."""
        referee, loop = self._referee, asyncio.get_running_loop()
        until_s = loop.time() + LIMITS.request_s + 1
        while referee.entries and loop.time() < until_s and self.outcome.violation is None:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        try:
            await self._world.settle()
            await asyncio.sleep(5.0)  # what is late may still come, and must change nothing
            await self._world.settle()  # a canary may be under way
            async with asyncio.timeout(CANARIES_S):
                while referee.has_unnoticed:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            await self._world.settle()
        except TimeoutError:
            referee.violate(f"nothing has come to rest: {self._world.gauges()}, whole: {self._world.is_whole}")
        if self.outcome.violation is None:
            referee.at_rest(tasks_before)

    # faults

    def _deal(self, index: int) -> None:
        if self._plan is None and index % self._gap == self._gap - 1:
            if not self._deck:
                self._deck = list(CELLS)
                self._random.shuffle(self._deck)
            fault, phase = self._deck.pop()
            self._open[phase].append(fault)

    def _on_phase(self, request: WatchedRequest) -> None:
        self._referee.phase(request)
        phase = request.phase
        if phase not in self._open:
            return
        entry = self._referee.entries.get(request.id)
        if entry is None or not (self._open[phase] or (entry.index, phase) in self._struck_phases):
            return
        if phase in (Phase.RESERVED, Phase.MIGRATING):
            self._consider(entry, phase)  # over before anything else could be scheduled: now or never
        if phase is not Phase.RESERVED:
            asyncio.get_running_loop().call_soon(self._consider, entry, phase, True)

    def _consider(self, entry: Entry, phase: Phase, is_later: bool = False) -> None:
        """Strikes, if the request is still there and something is meant for it."""
        request = entry.stream.request
        if request.phase is not phase or request.id not in self._referee.entries:
            return
        now_only = phase is Phase.MIGRATING and not is_later
        nth = sum(name == ENTERING[phase].value for name, _ in request.history)
        if self._plan is not None:
            fault = self._plan.get((entry.index, phase, nth))
            if fault is not None and not (now_only and fault in OF_CLIENTS):
                del self._plan[entry.index, phase, nth]
                self._strike(entry, Strike(entry.index, fault, phase, nth))
            return
        waiting = self._open[phase]
        for _ in range(len(waiting)):
            fault = waiting.popleft()
            is_too_much = fault in KILLERS and self._referee.dying_count >= SICK_MAX
            if is_too_much or (now_only and fault in OF_CLIENTS):
                waiting.append(fault)
                continue
            self._strike(entry, Strike(entry.index, fault, phase, nth))
            return

    def _strike(self, entry: Entry, strike: Strike) -> None:
        self.outcome.strikes.append(strike)
        entry.strikes.append(f"{strike.fault.value} in {strike.phase.name}")
        self._referee.event(strike.index << 8 ^ strike.phase.value)
        random = Random((self.outcome.seed << 32 | strike.index) << 4 | strike.phase.value)
        try:
            self._faults.strike(strike.fault, entry.stream, random)
        except AssertionError as error:
            self._referee.violate(str(error), entry)


ENTERING = {phase: event for (_, event), phase in NEXT.items()}  # one event leads to each phase


def run_campaign(
    seed: int, requests: int, plan: list[Strike] | None = None, gap_requests: int = GAP_REQUESTS
) -> Outcome:
    logging.getLogger("disagg").setLevel(logging.CRITICAL)  # every fault is a warning to somebody
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        outcome = runner.run(Campaign(seed, requests, plan, gap_requests).run())
    gc.collect()
    return outcome
