"""Rounds of what operators order of a simulated deployment, under load, with faults in between: no request may fail.

Way:   `soak --changes N`, a test -> [run_changes] -> SimulatedDeployment: the same Changes and Fleet as in earnest
In:    how many rounds, and a seed: it decides every order and every fault
Out:   how often each order ended in which way; what did not hold, with its round. The first violation ends it
Checks: every request has its whole answer (but one under which an engine died by a fault, when none is idle to try it
       on alone); nothing drains but beside a healthy pair; a change comes to an end; a bad configuration never stays;
       in the end nobody holds anything, and every engine has a place, every place an engine
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass, field
from random import Random

import yaml

from disagg.cluster.change.outline import serves_without
from disagg.load import parse_config
from disagg.registry import orders
from disagg.registry.orders import Asked, Stage
from disagg.registry.records import EngineRecord, State
from disagg.roles import Role
from disagg.simulated_engine.tokens import answer
from disagg.simulation.loop import VirtualLoop
from disagg.simulation.world import SimulatedDeployment, Stream

PREFILL = {"page_size": 16, "chunk_tokens": 512, "prefill_token_s": 0.0001}
DECODE = {"page_size": 16, "step_s": 0.02, "kv_tokens": 65536}
COUNTS = (2, 3, 4)  # engines of a role
ROOM_MAX = 8  # engines; sometimes there is none for another beside the old ones
GAP_S = 0.1  # between two requests
TOKENS = 30
FAULT_S = 6.0  # a fault comes within this time after an order
CHANGE_S = 1800.0  # an order has come to its end
SETTLE_S = 30.0
BAD = "NO_START"  # an environment variable with which no engine starts
WHY_BAD = "it was told not to start"


@dataclass(slots=True)
class Rounds:
    seed: int
    rounds: int = 0
    ends: Counter[str] = field(default_factory=Counter)  # of orders: "scale done", "apply rolled back"
    faults: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    moved: int = 0  # of these: were tried again, or went on elsewhere
    blamed: int = 0  # of these: failed, as a fault's engine had died under them (coordinator/suspects.py)
    violation: str = ""

    def __str__(self) -> str:
        ends = ", ".join(f"{what} {count}" for what, count in sorted(self.ends.items()))
        faults = ", ".join(f"{what} {count}" for what, count in sorted(self.faults.items()))
        served = f"{self.requests} requests, {self.moved} moved, {self.blamed} failed for a fault"
        said = f"seed {self.seed}: {self.rounds} rounds ({ends}; {faults}), {served}"
        return f"{said}\nVIOLATION in round {self.rounds}: {self.violation}" if self.violation else said


class _Violation(Exception):
    pass


class Campaign:
    """Of one model."""

    room_max = ROOM_MAX

    def __init__(self, seed: int, rounds: int) -> None:
        self._rounds, self._random, self.found = rounds, Random(seed), Rounds(seed)
        self._streams: list[Stream] = []
        self._struck: set[str] = set()  # lives
        self._strikes_the_next = False  # engine that gets ready, on which the change counts

    async def run(self) -> Rounds:
        deployment = parse_config(self._begins_with())
        async with SimulatedDeployment(seed=self.found.seed, deployment=deployment) as world:
            self._world = world
            world.places.room_max = self.room_max
            world.registry.on_put = self._look
            world.places.why_no_start = lambda spec: WHY_BAD if BAD in spec.environment else ""
            load = asyncio.create_task(self._load(), name="load")
            try:
                while self.found.rounds < self._rounds and not self.found.violation:
                    self.found.rounds += 1
                    await self._round()
                load.cancel()
                await self._answers()
            except _Violation as error:
                self._violates(str(error))
            finally:
                load.cancel()
        return self.found

    def _look(self, record: EngineRecord) -> None:
        """Nobody says yes here to a while without service."""
        is_alone = record.state is State.DRAINING and not serves_without(record.id, self._world.registry)
        if is_alone and self._is_to_serve(record):
            self._violates(f"{record.life} drains, and no other pair is healthy")
        if record.state is State.READY and self._strikes_the_next:
            self._strikes_the_next = False
            asyncio.get_running_loop().call_soon(self._strike, record.id)

    def _violates(self, what: str) -> None:
        self.found.violation = self.found.violation or what

    async def _round(self) -> None:
        world, random = self._world, self._random
        order, is_bad = self._order()
        answer = await self._ask(order)
        if not answer.change:
            self.found.ends[f"{order.__class__.__name__} nothing" if not answer.why_not else "refused"] += 1
            return
        self._strikes_the_next = random.random() < 0.3
        if random.random() < 0.4:
            await asyncio.sleep(random.uniform(0, FAULT_S))
            self._fault()
        try:
            async with asyncio.timeout(CHANGE_S):
                while (change := world.changes.status().change) is None or change.stage is Stage.RUNNING:  # noqa: ASYNC110
                    await asyncio.sleep(0.5)
        except TimeoutError:
            raise _Violation(f"{order} has no end") from None
        self.found.ends[f"{order.__class__.__name__} {change.stage}"] += 1
        if is_bad and change.stage is not Stage.ROLLED_BACK:
            raise _Violation(f"{order} of engines that do not start is {change.stage}: {change.why}")
        if not is_bad and WHY_BAD in change.why:
            raise _Violation(f"a bad configuration has stayed: {change.why}")
        world.plans = dict(world.changes.engines)
        await self._settled(order)
        await self._answers()

    async def _ask(self, order: orders.Order) -> orders.Answer:
        return await self._world.changes.ask(Asked(order))

    def _begins_with(self) -> str:
        return self._config(2, 2)

    def _is_to_serve(self, _record: EngineRecord) -> bool:
        """Else it may drain, whatever else there is."""
        return True

    def _order(self) -> tuple[orders.Order, bool]:
        """And whether its engines cannot start."""
        random, engines = self._random, list(self._world.changes.engines.values())
        prefill, decode = random.choice(COUNTS), random.choice(COUNTS)
        match random.choice(("scale", "restart", "apply", "bad", "role", "rollback")):
            case "scale":
                return orders.Scale({Role.PREFILL: prefill, Role.DECODE: decode}), False
            case "restart":
                return orders.Restart(random.choice(((), ("decode",), (random.choice(engines).id,)))), False
            case "apply":
                return orders.Apply(self._config(prefill, decode, random.choice((32768, 65536, 49152)))), False
            case "bad":  # more of them than there are: it would otherwise be nothing but fewer
                return orders.Apply(self._config(prefill, decode, env={BAD: str(random.random())})), True
            case "role":
                engine = random.choice(engines)
                role = Role.DECODE if engine.role is Role.PREFILL else Role.PREFILL
                return orders.ChangeRole(engine.id, role), False
            case _:
                revisions = self._world.changes.status().revisions
                return orders.Rollback(random.choice(revisions).number), False

    def _config(self, prefill: int, decode: int, kv_tokens: int = 65536, env: dict[str, str] | None = None) -> str:
        return yaml.safe_dump(
            {
                "version": 1,
                "name": "changing",
                "device": "simulated",
                "model": {"path": "simulated"},
                "prefill": {"replicas": prefill, "engine": PREFILL},
                "decode": {"replicas": decode, "engine": DECODE | {"kv_tokens": kv_tokens}, "env": env or {}},
            }
        )

    def _fault(self) -> None:
        """On any engine that is ready: also on the last one of its role, while another is started again."""
        random, world = self._random, self._world
        if ready := [r for r in world.registry.records.values() if r.state is State.READY]:
            self._strike(random.choice(ready).id)

    def _strike(self, engine_id: str) -> None:
        random, world = self._random, self._world
        host = world.hosts[engine_id]
        what = random.choice(("crash", "freeze", "cut"))
        self.found.faults[what] += 1
        self._struck.add(host.life)
        if what == "crash":
            host.kill()
        elif what == "freeze":
            host.freeze()
        else:
            for link in list(world.network.links_of(host.name)):
                link.cut("Connection reset by peer")

    async def _load(self) -> None:
        number = 0
        while True:
            number += 1
            self._streams += self._opened([number, *range(100)])
            await asyncio.sleep(GAP_S)

    def _opened(self, prompt: list[int]) -> list[Stream]:
        return [self._world.open(prompt, TOKENS)]

    async def _answers(self) -> None:
        """All that was asked up to now has its whole answer. Raises _Violation."""
        streams, self._streams = self._streams, []
        for stream in streams:
            await stream.task
            want = answer(stream.request.prompt_ids, TOKENS, ignore_eos=True)
            blamed = {each.life for each in stream.request.blames}
            if stream.error is not None and blamed and blamed <= self._struck:
                self.found.blamed += 1
            elif stream.error is not None or stream.ids != want:
                raise _Violation(f"request {stream.request.id}: {stream.error or 'wrong tokens'}")
            self.found.moved += stream.request.tries > 1
        self.found.requests += len(streams)

    async def _settled(self, order: orders.Order) -> None:
        world = self._world
        try:
            async with asyncio.timeout(SETTLE_S):
                while not world.is_whole:
                    world.fleet.check()
                    await asyncio.sleep(0.1)
        except TimeoutError:
            states = {r.life: r.state.value for r in world.registry.records.values()}
            raise _Violation(f"{order}: not whole again; wanted {sorted(world.plans)}, there are {states}") from None
        if world.places.taken != len(world.plans):
            raise _Violation(f"{order}: {world.places.taken} places for {len(world.plans)} engines")


def run_changes(seed: int, rounds: int, campaign: type[Campaign] = Campaign) -> Rounds:
    ours = logging.getLogger("disagg")
    level = ours.level
    ours.setLevel(logging.CRITICAL)  # every fault is a warning to somebody
    try:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            return runner.run(campaign(seed, rounds).run())
    finally:
        ours.setLevel(level)
