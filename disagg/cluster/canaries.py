"""Canaries: does each rank of an idle engine still make steps, does each pair still move KV?

Way:   fleet -> [Canaries.run] -> transfer/canary.py on one engine or pair at a time
In:    engines that are idle; pairs between which a request's KV did not come, as frontends tell (`suspect`)
Out:   `on_sick(life, why)` after FAILURES_MAX failures in a row
Why:   an engine without requests shows no progress to judge by, and the first client would meet its hang. An engine
       with requests gets none: its progress is watched in its host, and a canary would cost its clients time. But its
       host does not see whether KV arrives; so a suspected pair gets one, busy or not
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial

from disagg.cluster.live import LiveEngine
from disagg.cluster.proving import Pair, Prover
from disagg.role_table import ROLES
from transfer.canary import CanaryFailed

log = logging.getLogger(__name__)

LIMIT_S = 5.0  # one canary
BUSY_LIMIT_S = 30.0  # for a prompt of a few tokens to be read, behind all others
BUSY_TRANSFER_S = 10.0  # for its KV to come, beside that of others
FAILURES_MAX = 2  # in a row
AGAIN_S = 1.0  # after a failure
LOOK_S = 0.5
PAIRS_EVERY = 3  # of a decode engine's turns, one is for its pairs, too
WITNESSES_MAX = 3  # of one side of a pair that fails: one of them may be out of order itself
PAIRS_A_TURN = 4  # prefills each of its ranks meets in such a turn; the next turn goes on where this one ended
BUSY_NODE_FACTOR = 6  # an idle engine whose node has others at work is tried so much more rarely: they share cores


ProbePair = Callable[[Pair], Awaitable[str | None]]


@dataclass(slots=True)
class Turns:
    """What the canaries of one incarnation have come to."""

    last_at_s: float
    count: int = 0
    failures: int = 0  # in a row


def _is_there(live: LiveEngine) -> bool:
    return not live.is_retiring and live.client.is_open


def _is_idle(live: LiveEngine) -> bool:
    return not live.others_requests and _is_there(live)


def is_due(quiet_s: float, since_last_s: float, failures: int, node_is_busy: bool, canary_s: float) -> bool:
    if quiet_s <= 0.0:
        return False
    wait_s = canary_s * (BUSY_NODE_FACTOR if node_is_busy else 1)
    return since_last_s >= AGAIN_S if failures else min(quiet_s, since_last_s) >= wait_s


def blame(pair: Pair, probed: Mapping[Pair, bool]) -> set[str]:
    """Which side of a failing pair is to blame, given how each side's probes with other peers went just now?

    A side that works with another peer is not to blame. If both do, decode is: its restart costs least. Of a side that
    could be tried with nobody else nothing is known: it is blamed where the same is true of both.
    """
    prefill, decode = pair
    of_prefill = [well for (p, _), well in probed.items() if p == prefill]
    of_decode = [well for (_, d), well in probed.items() if d == decode]
    if any(of_prefill):
        return {decode}
    if any(of_decode) or bool(of_prefill) > bool(of_decode):
        return {prefill}
    return {decode} if bool(of_decode) > bool(of_prefill) else {prefill, decode}


class Canaries:
    """Probes idle engines one after another, and suspected pairs beside, until `run` is cancelled.

    `canary_s`: how often each rank of an idle engine is probed; `limit_s`: how long a probe may take; both in seconds
    of the clock `now_s`. `on_sick(life, why)` is called after FAILURES_MAX failures in a row.
    """

    def __init__(
        self,
        prover: Prover,
        on_sick: Callable[[str, str], None],
        canary_s: float,
        now_s: Callable[[], float],
        limit_s: float = LIMIT_S,
    ) -> None:
        self._prover, self._on_sick = prover, on_sick
        self._canary_s, self._limit_s, self._now_s = canary_s, limit_s, now_s
        self._turns: dict[str, Turns] = {}
        self._pair_failures: dict[Pair, int] = {}
        self._next_pair = 0
        self._tries: asyncio.TaskGroup | None = None  # of suspected pairs
        self._suspected: set[str] = set()  # lives in these

    def suspect(self, pair: Pair) -> None:
        """A request's KV did not come: the pair is tried now, however busy it is. While one of the two is tried with
        somebody else this is not heard: if it stays so, the next request will tell."""
        if self._tries is not None and pair in self._prover.met and self._suspected.isdisjoint(pair):
            self._suspected.update(pair)
            trying = self._tries.create_task(self._try_suspected(pair), name=f"try {' and '.join(pair)}")
            trying.add_done_callback(lambda _: self._suspected.difference_update(pair))

    async def run(self) -> None:
        """Until it is cancelled."""
        async with asyncio.TaskGroup() as self._tries:
            while True:
                await asyncio.sleep(min(LOOK_S, self._canary_s))
                await self.look()

    async def look(self) -> None:
        """One turn of each engine that is due."""
        up = self._prover.up
        self._turns = {life: self._turns.get(life) or Turns(self._now_s()) for life in up}
        self._pair_failures = {pair: n for pair, n in self._pair_failures.items() if pair in self._prover.met}
        busy_nodes = self._busy_nodes()
        for live in list(up.values()):
            if self._is_due(live, busy_nodes):
                await self._turn(live)
                busy_nodes = self._busy_nodes()

    def _busy_nodes(self) -> set[str]:
        return {live.record.node for live in self._prover.up.values() if live.others_requests}

    def _is_due(self, live: LiveEngine, busy_nodes: set[str]) -> bool:
        if live.is_retiring or live.life not in self._prover.up or not self._prover.has_met(live.life):
            return False
        turns, node_is_busy = self._turns[live.life], live.record.node in busy_nodes
        failures = turns.failures + sum(n for pair, n in self._pair_failures.items() if pair[1] == live.life)
        return is_due(live.quiet_s(), self._now_s() - turns.last_at_s, failures, node_is_busy, self._canary_s)

    async def _turn(self, live: LiveEngine) -> None:
        turns = self._turns[live.life]
        why = await self._probe_ranks(live)
        turns.count, turns.last_at_s = turns.count + 1, self._now_s()
        if why is None:  # a client came, nothing is known
            return
        turns.failures = turns.failures + 1 if why else 0
        if turns.failures >= FAILURES_MAX:
            self._on_sick(live.life, why)
        elif ROLES[live.record.role].takes_kv_from and not why and self._is_for_pairs(live.life, turns):
            await self._pairs(live)
            turns.last_at_s = self._now_s()

    def _is_for_pairs(self, decode: str, turns: Turns) -> bool:
        return turns.count % PAIRS_EVERY == 0 or any(d == decode for _, d in self._pair_failures)

    async def _probe_ranks(self, live: LiveEngine) -> str | None:
        """As `_try`."""
        for endpoint in live.endpoints():
            probe = partial(ROLES[live.record.role].probe, endpoint, self._limit_s)
            why = await self._try_alone((live.life,), probe)
            if why is None:
                return None
            if why:
                return f"rank {endpoint.dp_rank}: canary: {why}"
        return ""

    async def _pairs(self, decode: LiveEngine) -> None:
        """Real transfers with some of the prefills that this decode has met; with those that failed first."""
        known = sorted(self._prover.met.met_with(decode.life))
        failed = [p for p in known if (p, decode.life) in self._pair_failures]
        count = len(known)
        chosen = [known[(self._next_pair + i) % count] for i in range(min(PAIRS_A_TURN, count))]
        self._next_pair += len(chosen)
        for prefill in dict.fromkeys([*failed, *chosen]):
            pair = (prefill, decode.life)
            why = await self._probe_pair(pair)
            if not why:  # the transfer went well, or a client came
                self._pair_failures.pop(pair, None)
                continue
            failures = self._pair_failures[pair] = self._pair_failures.get(pair, 0) + 1
            if failures >= FAILURES_MAX:
                for life in sorted(blame(pair, await self._witnesses(pair, self._probe_pair))):
                    self._on_sick(life, f"transfer {prefill} -> {decode.life}: {why}")
                self._pair_failures.pop(pair, None)

    async def _try_suspected(self, pair: Pair) -> None:
        why: str | None = None
        for _ in range(FAILURES_MAX):
            why = await self._probe_busy(pair)
            if not why:
                return
        probed = await self._witnesses(pair, self._probe_busy)
        # Without witnesses decode keeps its streams: whether it takes KV at all, the next life of its prefill shows.
        for life in sorted(blame(pair, probed)) if probed else [pair[0]]:
            self._on_sick(life, f"transfer {pair[0]} -> {pair[1]}: {why}")

    async def _witnesses(self, pair: Pair, probe: ProbePair) -> dict[Pair, bool]:
        """Other pairs of each of the two, probed now: until one works, WITNESSES_MAX at most."""
        prefill, decode = pair
        met = self._prover.met
        with_others = (
            [(prefill, other) for other in sorted(met.met_with(prefill)) if other != decode],
            [(other, decode) for other in sorted(met.met_with(decode)) if other != prefill],
        )
        probed: dict[Pair, bool] = {}
        for others in with_others:
            for other in others:
                if (why := await probe(other)) is not None:
                    probed[other] = not why
                told = [well for each, well in probed.items() if each in others]
                if any(told) or len(told) == WITNESSES_MAX:
                    break
        return probed

    async def _probe_pair(self, pair: Pair) -> str | None:
        """As `_try`."""
        return await self._try_alone(pair, partial(self._prover.probe_all_ranks, pair, self._limit_s))

    async def _probe_busy(self, pair: Pair) -> str | None:
        """As `_try`, but that other requests do not make it void: its time runs once its prompt has been read."""
        probe = partial(self._prover.probe_all_ranks, pair, BUSY_LIMIT_S, BUSY_TRANSFER_S)
        return await self._try(pair, probe, _is_there)  # not alone: newcomers would have to wait until it is over

    async def _try_alone(self, lives: tuple[str, ...], probe: Callable[[], Awaitable[None]]) -> str | None:
        """As `_try`, of idle engines."""
        async with self._prover.alone_with(*lives):
            return await self._try(lives, probe, _is_idle)

    async def _try(
        self, lives: tuple[str, ...], probe: Callable[[], Awaitable[None]], counts: Callable[[LiveEngine], bool]
    ) -> str | None:
        """Empty: they are well. None: one of them got a request or ended meanwhile, so nothing is known. `counts`: of
        which engines a failure tells something, before the probe and after it."""
        found = [self._prover.up.get(life) for life in lives]

        def all_count() -> bool:
            return all(live is not None and counts(live) for live in found)

        if not all_count():
            return None
        try:
            await probe()
        except CanaryFailed as error:
            if error.was_unread or not all_count():
                return None
            log.warning("%s", error)
            return error.what
        return ""
