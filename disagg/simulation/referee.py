"""The rules that must hold in a soak, checked after every event that matters.

Way:   requests' phases, their ends, deliveries on the network -> [Referee] -> nothing, or one Violation
Owns:  the count and the hash of all events: the same seed gives the same hash
Checks: each request ends once; a finished answer is the whole chain of its tokens, a broken one a beginning of it; no
       phase outlives its deadline; rooms, places and ledgers agree; nobody fails before its first token while a pair is
       in order; no policy fails; in the end nobody holds anything, and frontends know what engines have cached
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from disagg.coordinator.phases import LIVE, Phase
from disagg.errors import DeadlineExceeded, LegLost, NoReadyPair
from disagg.registry.records import EngineRecord, State
from disagg.roles import Role
from disagg.routing.prefix_index.index import SURE_BLOCKS
from disagg.routing.router import PolicyFailed
from disagg.simulated_engine.tokens import EOS, answer
from disagg.simulation.faults import FOR_EVER
from disagg.simulation.network import Link
from disagg.simulation.outcome import Outcome, Violation
from disagg.simulation.world import Frontend, SimulatedDeployment, Stream, WatchedRequest

CONNECTING = "to "  # a decode engine still looks for a prefill that is gone, as SGLang does for 15 s
SLACK_S = 0.05
MASK = (1 << 64) - 1
UNDUE = (LegLost, DeadlineExceeded, NoReadyPair)  # before a first token, while a pair is in order
NOTICED_S = 10.0  # an engine that does nothing any more does not serve for longer
CANARIES_S = 120.0  # one that does all but move KV is found by canaries, when it rests
ECHO_S = 20.0  # so long after a fault is over, canaries may still say what it did
AFTER_READY_S = 1.0  # frontends have connected to an engine that is READY again


@dataclass(slots=True, eq=False)
class Entry:
    """One live request, as the soak knows it."""

    index: int
    stream: Stream
    strikes: list[str] = field(default_factory=list)


class Referee:
    """Watches a simulated deployment, and notes the first rule that is broken in the soak's outcome.

    It also counts and hashes all events: two runs with one seed have the same hash.
    """

    def __init__(self, world: SimulatedDeployment, outcome: Outcome) -> None:
        self._world, self._outcome = world, outcome
        self._loop = asyncio.get_running_loop()
        self.entries: dict[str, Entry] = {}
        self._disturbed_until_s: dict[str, float] = dict.fromkeys(world.plans, 0.0)
        self._disturbed_life: dict[str, str] = {}
        self._dying_since_s: dict[str, float] = {}  # lives that no fault's end will save
        self._struck_until_s: dict[str, float] = {}  # by life
        self._calm_since_s: dict[str, float] = dict.fromkeys(world.plans, 0.0)
        self._loop.set_exception_handler(self._exception)
        world.network.on_delivery = self._delivered
        world.registry.on_put = self._check_end

    # events

    def event(self, value: int) -> None:
        outcome = self._outcome
        outcome.event_count += 1
        outcome.event_hash = (outcome.event_hash * 1_000_003 ^ value ^ int(self._loop.time() * 1e6)) & MASK

    def _delivered(self, link: Link, direction: int, size: int) -> None:
        self.event(link.number << 24 ^ size << 1 ^ direction)

    def phase(self, request: WatchedRequest) -> None:
        entry = self.entries.get(request.id)
        if entry is None:
            self.violate("an event after its end", None, request)
            return
        self.event(entry.index << 5 ^ request.phase.value)

    def ended(self, entry: Entry) -> None:
        """Called when the client has the end of its answer."""
        stream = entry.stream
        request = stream.request
        del self.entries[request.id]
        outcome = (
            "cancelled" if stream.task.cancelled() else type(stream.error).__name__ if stream.error else "finished"
        )
        self._outcome.outcomes[outcome] = self._outcome.outcomes.get(outcome, 0) + 1
        ignore_eos = bool(request.sampling["ignore_eos"])
        whole = answer(request.prompt_ids, request.max_tokens, ignore_eos)
        error = None if stream.task.cancelled() else stream.task.exception()
        if isinstance(request.facts.routed, PolicyFailed):
            self.violate(f"its policy failed: {request.facts.routed}", entry)
        elif error is not None:
            self.violate(f"{type(error).__name__}: {error}", entry)
        elif request.phase in LIVE:
            self.violate(f"it ended in {request.phase.name}", entry)
        elif stream.ids != whole[: len(stream.ids)]:
            self.violate(f"wrong tokens: {stream.ids} instead of {whole}", entry)
        elif outcome == "finished":
            reason = "stop" if whole[-1] == EOS and not ignore_eos else "length"
            if len(stream.ids) != len(whole) or stream.finish_reason != reason:
                self.violate(f"{len(stream.ids)} of {len(whole)} tokens, {stream.finish_reason}, not {reason}", entry)
        elif isinstance(stream.error, UNDUE) and not stream.ids and (pair := self._healthy_pair(request.received_at_s)):
            self.violate(f"lost before its first token ({stream.error.what}) while {pair} was in order", entry)

    # engines

    def disturbed(self, engine_id: str, for_s: float) -> None:
        until_s = self._loop.time() + for_s
        self._disturbed_until_s[engine_id] = max(self._disturbed_until_s[engine_id], until_s)
        life = self._disturbed_life[engine_id] = self._world.hosts[engine_id].life
        self._struck_until_s[life] = max(self._struck_until_s.get(life, 0.0), until_s)
        if for_s == FOR_EVER:
            self._dying_since_s.setdefault(life, self._loop.time())

    @property
    def dying_count(self) -> int:
        """Engines that will not come back but in a new life."""
        return sum(until_s == FOR_EVER for until_s in self._disturbed_until_s.values())

    @property
    def has_unnoticed(self) -> bool:
        """An engine that is out of order for good serves."""
        records = self._world.registry.records.values()
        return any(record.state is State.READY and record.life in self._dying_since_s for record in records)

    def watch_engines(self) -> None:
        """An engine is in order again when it is READY in a new life, or when the fault is over."""
        now_s, records = self._loop.time(), self._world.registry.records
        for engine_id in self._world.plans:
            record, until_s = records[engine_id], self._disturbed_until_s[engine_id]
            lives_anew = until_s == FOR_EVER and self._disturbed_life[engine_id] != record.life
            if record.state is not State.READY or lives_anew:
                self._disturbed_until_s[engine_id] = now_s + AFTER_READY_S
            if self._disturbed_until_s[engine_id] > now_s:
                self._calm_since_s[engine_id] = float("inf")
            elif self._calm_since_s[engine_id] == float("inf"):
                self._calm_since_s[engine_id] = now_s

    def _healthy_pair(self, since_s: float) -> str:
        now_s, registry = self._loop.time(), self._world.registry
        calm = [
            registry.records[engine_id]
            for engine_id in self._world.plans
            if self._calm_since_s[engine_id] <= since_s and self._disturbed_until_s[engine_id] <= now_s
        ]
        for decode in (record for record in calm if record.role is Role.DECODE):
            for prefill in (record for record in calm if record.role is Role.PREFILL):
                if (prefill.life, decode.life) in registry.met:
                    return f"{prefill.life} + {decode.life}"
        return ""

    # what must hold at any time

    def sweep(self) -> None:
        self.watch_engines()
        self._check_fleet()
        now_s = self._loop.time()
        for entry in self.entries.values():
            late = self._late(entry.stream.request, now_s)
            if late:
                self.violate(late, entry)
                return
        for frontend in self._world.frontends:
            rooms, places = len(frontend.coordinator.rooms), frontend.router.endpoints.places_taken
            if places < rooms:  # a leg that has ended has given its place back; a room is given back after both
                self.violate(f"{frontend.name}: {rooms} rooms but {places} places")
        for host in self._world.hosts.values():
            if host.is_alive:
                self._check_host(host)

    def _check_fleet(self) -> None:
        """The control plane notices what is out of order, ends nothing else, and lets none serve that have not met."""
        try:
            self._world.fleet.check()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the violation
            self.violate(f"the fleet has failed: {type(error).__name__}: {error}")
        hosts = {host.life: host for host in self._world.hosts.values()}
        for prefill, decode in self._world.registry.met:
            if prefill not in hosts or decode not in hosts:
                self.violate(f"{prefill} and {decode} are said to have met, and one of them is over")
            elif decode not in hosts[prefill].engine.delivered_to:
                self.violate(f"{prefill} and {decode} are said to have met, and no KV has gone that way")
        for record in self._world.registry.records.values():
            dying_s = self._loop.time() - self._dying_since_s.get(record.life, self._loop.time())
            limit_s = CANARIES_S if self._world.hosts[record.id].engine.is_lame else NOTICED_S
            if record.state is State.READY and dying_s > limit_s:
                self.violate(f"{record.life} has been out of order for {dying_s:.1f} s, and serves")

    def _check_end(self, record: EngineRecord) -> None:
        now_s, life = self._loop.time(), record.life
        if record.state in (State.QUARANTINED, State.DEAD) and now_s > self._struck_until_s.get(life, 0.0) + ECHO_S:
            self.violate(f"{life} was in order, and is {record.state}: {record.detail}")

    def _late(self, request: WatchedRequest, now_s: float) -> str:
        limits, phase = self._world.limits, request.phase
        since_s = max(request.phase_since_s, request.received_at_s)  # its task may not have run yet
        first_token_s = request.try_since_s + limits.first_token_s
        until_s = {
            Phase.QUEUED: since_s + max(limits.queue_s, limits.no_pair_s),
            Phase.MIGRATING: since_s + max(limits.queue_s, limits.no_pair_s),
            Phase.DISPATCHED: request.try_since_s + min(limits.bootstrap_s, limits.first_token_s),
            Phase.BOOTSTRAPPING: request.try_since_s + min(limits.bootstrap_s, limits.first_token_s),
            Phase.PREFILLING: first_token_s,
            Phase.TRANSFERRING: min(first_token_s, request.phase_since_s + limits.transfer_s),
            Phase.DECODING: request.token_at_s + limits.next_token_s,
        }.get(phase, now_s)
        over_s = now_s - min(until_s, request.received_at_s + limits.request_s)
        return f"{over_s:.3f} s past its deadline in {phase.name}" if over_s > SLACK_S else ""

    def _check_host(self, host: Any) -> None:
        ledger = host.server.ledger
        for rank, engine_rank in enumerate(host.engine.ranks):
            requests, tokens = ledger.requests[rank], ledger.kv_tokens[rank]
            if requests < 0 or tokens < 0 or (requests == 0) != (tokens == 0):
                self.violate(f"{host.life}/{rank}: the ledger says {requests} requests, {tokens} tokens")
            if len(engine_rank.legs) > requests:
                self.violate(f"{host.life}/{rank}: {len(engine_rank.legs)} legs, but {requests} granted")
            if not 0 <= engine_rank.pool.tokens_used <= engine_rank.pool.tokens_total:
                self.violate(f"{host.life}/{rank}: {engine_rank.pool.tokens_used} KV tokens used")

    def at_rest(self, tasks_before: int) -> None:
        """Checks at the end of a soak that nothing is held any more."""
        held = {name: count for name, count in self._world.gauges().items() if count}
        if held:
            self.violate(f"nobody runs, and yet: {held}")
        for hosts, count in Counter(link.hosts for link in self._world.network.links.values()).items():
            if count > 1:
                self.violate(f"{count} connections from {hosts[0]} to {hosts[1]}")
        for frontend in self._world.frontends:
            self._check_index(frontend)
        names = (task.get_name() for task in asyncio.all_tasks())
        tasks = sorted(name for name in names if not name.startswith(CONNECTING))
        if len(tasks) > tasks_before:
            self.violate(f"{len(tasks)} tasks, {tasks_before} before: {tasks}")

    def _check_index(self, frontend: Frontend) -> None:
        """What it knows to be cached is what each host says. Where prompts part some blocks may be missing."""
        for (engine_id, rank), told in frontend.connections.caches.items():
            host = self._world.hosts[engine_id]
            blocks = host.kv.blocks(rank) if host.kv is not None else 0
            if told.is_known is not host.engine.ranks[rank].tells_cache:
                self.violate(f"{frontend.name}: whether {host.life}/{rank} tells what it holds is not known")
            if abs(told.blocks - blocks) > blocks // 10 + SURE_BLOCKS:
                self.violate(
                    f"{frontend.name} knows of {told.blocks} blocks on {host.life}/{rank}, and it has {blocks}"
                )

    # violations

    def violate(self, what: str, entry: Entry | None = None, request: WatchedRequest | None = None) -> None:
        if self._outcome.violation is not None:
            return
        violation = self._outcome.violation = Violation(what, self._loop.time(), entry.index if entry else -1)
        request = request or (entry.stream.request if entry else None)
        if request is not None:
            moments = [f"{name} {at_s:.4f}" for name, at_s in request.history]
            violation.timeline = [
                f"received {request.received_at_s:.4f}, {', '.join(moments)}",
                f"facts {request.facts}",
                f"struck by {entry.strikes if entry else []}",
            ]

    def _exception(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.violate(f"{context['message']}: {type(error).__name__}: {error}")
