"""One frontend of a simulated deployment: real Endpoints, a real Router with its policy, a queue before them.

Way:   World -> [Frontend.ask] -> Router.pick -> (dispatch) -> [submitted]: granted by both hosts, or in line again
In:    hosts' reports, and what its own legs tell when they end
Owns:  the requests that wait, in order: those that a host refused go first, then by arrival. None overtakes
Not:   disagg/coordinator/admission.py itself: it makes a view of token ids, and a task a request
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from disagg.plane.client import PlaneClient
from disagg.plane.messages import RankTaken
from disagg.registry.met import Met
from disagg.replay.virtual.clock import Clock
from disagg.replay.virtual.host import Host
from disagg.replay.virtual.served import Served
from disagg.replay.virtual.timed_policy import TimedPolicy
from disagg.routing.endpoints import Endpoint, Engine
from disagg.routing.load import Endpoints
from disagg.routing.observations import Answered, Prefilled, Transferred
from disagg.routing.policy import Policy
from disagg.routing.prefix_index.index import PrefixIndex
from disagg.routing.reservation import Reservation
from disagg.routing.router import PolicyFailed, Router
from disagg.routing.view import RoutingView

if TYPE_CHECKING:
    from disagg.routing.connections import Connections


class _OpenClient:
    """Stands in for a connection: the way to a host is World's."""

    is_open = True


class _Connected:
    """What a Router asks of Connections."""

    def __init__(self) -> None:
        self.endpoints = Endpoints()


class Frontend:
    def __init__(self, clock: Clock, policy: Policy) -> None:
        self._clock = clock
        self.policy = TimedPolicy(policy)
        connected = _Connected()
        self.endpoints = connected.endpoints
        self.router = Router(cast("Connections", connected), self.policy)
        self.endpoints.on_change = self.serve
        self.index = PrefixIndex()
        self._engines: dict[str, Engine] = {}
        self._again: deque[Served] = deque()
        self._waiting: deque[Served] = deque()
        self.failed_choices = 0  # LeastLoaded chose in the policy's place

    def connect(self, hosts: Sequence[Host], met: Met) -> None:
        client = cast("PlaneClient", _OpenClient())
        for number, host in enumerate(hosts):
            engine = Engine(host.life, host.life, host.model.role, number)
            engine.endpoints = [Endpoint(engine, rank, "", client, host.capacity) for rank in range(host.model.ranks)]
            self._engines[host.life] = engine
            self.endpoints.add(engine)
        self.endpoints.meet(met)

    def ask(self, served: Served) -> None:
        served.frontend = self
        if self._again or self._waiting or not self._pick(served):
            self._waiting.append(served)

    def serve(self) -> None:
        for line in (self._again, self._waiting):
            while line:
                if not self._pick(line[0]):
                    return
                line.popleft()

    def report(self, host: Host, ranks: Sequence[RankTaken]) -> None:
        for endpoint, taken in zip(self._engines[host.life].endpoints, ranks, strict=True):
            endpoint.report(taken)
        self.serve()

    def refused(self, served: Served, by: Host, rank: int) -> None:
        self._engines[by.life].endpoints[rank].on_refused()
        _held(served).release()
        self._again.append(served)
        self.serve()

    def has_read(self, served: Served, kv_bytes: int, transfer_s: float) -> None:
        """A prompt has been read and, if it was a prefill rank that read it, is with its decode rank."""
        reservation = _held(served)
        reader, decode = reservation.pair.prefill or reservation.pair.decode, reservation.pair.decode
        self.policy.observe(
            Prefilled(
                reader.id,
                served.prompt_tokens,
                served.cached_tokens,
                served.read_s - served.first_chunk_s,
                served.first_chunk_s - served.chosen_s,
            )
        )
        if reader is not decode:
            self.policy.observe(Transferred(reader.id, decode.id, kv_bytes, transfer_s))
            reservation.release_leg(reader)

    def has_answered(self, served: Served) -> None:
        self.policy.observe(Answered(served.prompt_tokens, served.output_tokens, served.max_tokens))
        _held(served).release()
        served.reservation = None

    def _pick(self, served: Served) -> bool:
        served.reservation = self.router.pick(
            RoutingView(prompt_tokens=served.prompt_tokens, new_tokens=served.max_tokens, session=served.session)
        )
        if served.reservation is None:
            return False
        self.failed_choices += isinstance(served.reservation.reason, PolicyFailed)
        served.chosen_s = self._clock.now_s
        self.on_chosen(served)
        return True

    def on_chosen(self, served: Served) -> None:
        """World's."""


def _held(served: Served) -> Reservation:
    assert served.reservation is not None, "it has no pair"
    return served.reservation
