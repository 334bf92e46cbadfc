"""One frontend of a simulated deployment: the real Admission, Router, policy and Endpoints, and no sockets.

Way:   World -> [Frontend.ask] -> Admission.reserve -> on_chosen: World sends its legs
In:    hosts' reports, KV events, and what its own legs tell when they end, as a Coordinator would
Owns:  its endpoints and their index: several frontends know of each other by reports alone
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, cast

from disagg.coordinator.admission import Admission
from disagg.coordinator.coordinator import STEPS_MIN
from disagg.coordinator.request import NoText, Request
from disagg.errors import Overloaded
from disagg.plane.client import PlaneClient
from disagg.plane.ledger import tokens_to_set_aside
from disagg.plane.messages import RankTaken
from disagg.registry.met import Met
from disagg.replay.virtual.clock import Clock
from disagg.replay.virtual.host import Host
from disagg.replay.virtual.kv_feed import KvEvent
from disagg.replay.virtual.served import Served
from disagg.role_table import ROLES
from disagg.routing.endpoints import Endpoint, Engine
from disagg.routing.load import Endpoints
from disagg.routing.observations import Answered, Transferred
from disagg.routing.policy import Policy
from disagg.routing.reservation import Reservation
from disagg.routing.router import PolicyFailed, Router
from disagg.routing.view import Choice, RoutingView

if TYPE_CHECKING:
    from disagg.routing.connections import Connections

FOREVER_S = 1e9
WAITING_MAX = 1 << 30


class _OpenClient:
    """Stands in for a connection: the way to a host is World's."""

    is_open = True


class _Connected:
    """What a Router asks of Connections."""

    def __init__(self, endpoints: Endpoints) -> None:
        self.endpoints = endpoints


class Frontend:
    """`on_chosen` gets a request that has a pair, `on_refused` one that admission refuses."""

    def __init__(
        self,
        clock: Clock,
        policy: Policy,
        block_tokens: int,
        on_chosen: Callable[[Served], None],
        on_refused: Callable[[Served], None],
        admission: type[Admission] = Admission,
    ) -> None:
        self._clock, self._on_chosen, self._on_refused = clock, on_chosen, on_refused
        self.endpoints = Endpoints()
        self.endpoints.block_tokens = block_tokens
        self.choices_us: list[float] = []  # of each look for a pair, those that found none among them
        self.failed_choices = 0  # LeastLoaded chose in the policy's place
        router = Router(cast("Connections", _Connected(self.endpoints)), _timed(policy, self.choices_us))
        self._router = router
        self._admission = admission(
            router, queue_max=WAITING_MAX, queue_s=FOREVER_S, no_pair_s=FOREVER_S, now_s=clock.loop.time
        )
        self.endpoints.on_change = self._admission.serve
        self._engines: dict[str, Engine] = {}

    def connect(self, hosts: Sequence[Host], met: Met) -> None:
        client = cast("PlaneClient", _OpenClient())
        for number, host in enumerate(hosts):
            engine = Engine(host.life, host.life, host.model.role, number)
            engine.place = host.place
            engine.endpoints = [
                Endpoint(engine, rank, "", client, host.capacity, chunk_tokens=host.model.chunk_tokens)
                for rank in range(host.model.ranks)
            ]
            self._engines[host.life] = engine
            self.endpoints.open_slots(engine)
            for endpoint in engine.endpoints:
                endpoint.tells_cache = ROLES[host.model.role].reads_prompts
            self.endpoints.add(engine)
        self.endpoints.meet(met)

    def ask(self, served: Served) -> None:
        now_s = self._clock.now_s
        request = Request(
            id=f"{served.number:032x}",
            prompt_ids=cast("list[int]", range(served.prompt_tokens)),  # of which the count is asked, no more
            sampling={},
            max_tokens=served.max_tokens,
            text=NoText(),
            received_at_s=now_s,
            waiting_since_s=now_s,
            owner=served.owner,
            wishes=served.wishes,
        )
        if self._router.reads_prefixes:
            request.path, request.path_tokens = served.path, served.prompt_tokens
        self._wait(served, request)

    def report(self, host: Host, ranks: Sequence[RankTaken]) -> None:
        for endpoint, taken in zip(self._engines[host.life].endpoints, ranks, strict=True):
            self.endpoints.report(endpoint, taken, self._clock.now_s)
        self.endpoints.on_change()

    def note(self, host: Host, events: Sequence[KvEvent]) -> None:
        """What its ranks have cached, and have no longer. Nobody asks the index of a policy that reads no prefixes."""
        if not self._router.reads_prefixes:
            return
        index, endpoints = self.endpoints.index, self._engines[host.life].endpoints
        for event in events:
            slot = endpoints[event.dp_rank].slot
            if event.is_stored:
                index.store(slot, event.path, new=event.blocks)
            else:
                index.cut(slot, event.path, len(event.path) - event.blocks)

    def refused(self, served: Served, by: Host, rank: int) -> None:
        """It waits again, before those that had no pair yet."""
        tokens = tokens_to_set_aside(served.prompt_tokens, ROLES[by.model.role].new_tokens(served.max_tokens))
        self._engines[by.life].endpoints[rank].on_refused(tokens)
        reservation_of(served).release()
        request = served.request
        assert request is not None
        request.tries += 1
        self._wait(served, request)

    def has_read(self, served: Served) -> None:
        reservation_of(served).has_read()

    def has_sent(self, served: Served, kv_bytes: int, transfer_s: float) -> None:
        """A prompt's KV is with its decode rank."""
        reservation = reservation_of(served)
        pair = reservation.pair
        assert pair.prefill is not None
        moved = served.prompt_tokens, kv_bytes, transfer_s
        self._router.observe(Transferred(pair.prefill.id, pair.decode.id, *moved, pair.shared))
        reservation.release_leg(pair.prefill)

    def has_answered(self, served: Served) -> None:
        reservation = reservation_of(served)
        tokens = served.output_tokens
        self._router.observe(Answered(served.prompt_tokens, tokens, served.max_tokens))
        if tokens >= STEPS_MIN:
            step_s = (served.ended_s - served.first_s - served.stood_s) / (tokens - 1)
            self._router.observe(reservation.stepped(served.prompt_tokens, step_s))
        reservation.release()

    def _wait(self, served: Served, request: Request) -> None:
        served.request = request
        task = self._clock.loop.create_task(self._reserve(served, request))
        task.add_done_callback(_raise_what_it_raised)

    async def _reserve(self, served: Served, request: Request) -> None:
        try:
            served.reservation = await self._admission.reserve(request, FOREVER_S)
        except Overloaded as refusal:
            served.refusal = refusal
            self._on_refused(served)
            return
        served.admitted_s = self._clock.now_s
        self.failed_choices += isinstance(served.reservation.reason, PolicyFailed)
        self._on_chosen(served)


def reservation_of(served: Served) -> Reservation:
    assert served.reservation is not None, "it has no pair"
    return served.reservation


def _timed(policy: Policy, taken_us: list[float]) -> Policy:
    choose = policy.choose

    def timed(request: RoutingView, endpoints: Endpoints) -> Choice | None:
        start_ns = perf_counter_ns()
        try:
            return choose(request, endpoints)
        finally:
            taken_us.append((perf_counter_ns() - start_ns) / 1e3)

    cast("Any", policy).choose = timed
    return policy


def _raise_what_it_raised(task: Any) -> None:
    task.result()
