"""A simulated deployment in virtual time: engines with their hosts, frontends, and the way of requests between them.

Way:   a workload -> [World.run] -> Frontend (real routing) -> Host (real ledger) -> Rank (a model) -> Run
In:    the pools' models; a policy a frontend; requests with their paths
Out:   the requests as they were served, gaps between tokens, what each rank did, what choices cost
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

from disagg.coordinator.admission import Admission
from disagg.nearness import Names, shared
from disagg.plane.messages import RankTaken
from disagg.registry.met import Met
from disagg.replay.virtual.clock import Clock
from disagg.replay.virtual.frontend import Frontend, reservation_of
from disagg.replay.virtual.host import Host
from disagg.replay.virtual.kv_feed import KvEvent, KvFeed
from disagg.replay.virtual.rank import Rank
from disagg.replay.virtual.served import NEVER, Served
from disagg.role_table import ROLES
from disagg.routing.endpoints import RankId
from disagg.routing.policy import Policy
from disagg.simulated_engine.model import Model


@dataclass(frozen=True)
class Pool:
    """`engines` engines of one kind."""

    model: Model
    engines: int


@dataclass(frozen=True)
class Follower:
    """A request of a closed loop: it comes `delay_s` after the one before it has ended."""

    served: Served
    delay_s: float


@dataclass(frozen=True)
class Run:
    served: Sequence[Served]
    gaps: Sequence[tuple[float, int]]  # (seconds between two tokens, how many)
    ranks: Sequence[Rank]
    choices_us: Sequence[float]
    refusals: int
    failed_choices: int


class World:
    """Runs once. `policies`: one a frontend; a request comes to any of them, by chance. `admission`: the real one, or
    one that notes what it does. `places`: of the engines, in the order of the pools; `slower`: how many times as long
    KV takes between two that share no nearer kind of place than this."""

    def __init__(
        self,
        pools: Sequence[Pool],
        policies: Sequence[Policy],
        seed: int,
        admission: type[Admission] = Admission,
        places: Sequence[Names] = (),
        slower: Mapping[str, float] | None = None,
    ) -> None:
        self._slower = slower or {}
        self._clock = clock = Clock()
        self._random = Random(seed)
        self._gaps: list[tuple[float, int]] = []
        self._refusals = 0
        models = [pool.model for pool in pools for _ in range(pool.engines)]
        self.hosts = [self._host(f"{model.role}-{number}", model) for number, model in enumerate(models)]
        for host, place in zip(self.hosts, places, strict=False):
            host.place = place
        self._host_of = {host.life: host for host in self.hosts}
        met = Met(
            (sender.life, taker.life)
            for taker in self.hosts
            for sender in self.hosts
            if (sender is taker and ROLES[taker.model.role].partner is None)
            or ROLES[taker.model.role].takes_kv_from is sender.model.role
        )
        block_tokens = next(
            (pool.model.cache_block_tokens for pool in pools if ROLES[pool.model.role].reads_prompts), 0
        )
        self.frontends = [
            Frontend(clock, policy, block_tokens, self._dispatch, self._ended, admission) for policy in policies
        ]
        for frontend in self.frontends:
            frontend.connect(self.hosts, met)
        self._followers: Mapping[int, Sequence[Follower]] = {}

    def run(self, arrivals: Iterable[Served], followers: Mapping[int, Sequence[Follower]] | None = None) -> Run:
        """`followers`: of a request, by its number. Returns when all have been answered."""
        self._followers = followers or {}
        every = list(arrivals)
        for served in every:
            self._clock.at(served.due_s, self._ask, served)
        self._served: list[Served] = []
        self._clock.run()
        if unanswered := sum(served.ended_s == NEVER for served in self._served):
            raise RuntimeError(f"{unanswered} of {len(self._served)} requests were never answered: a model's bug")
        return Run(
            self._served,
            self._gaps,
            [rank for host in self.hosts for rank in host.ranks],
            [us for frontend in self.frontends for us in frontend.choices_us],
            self._refusals,
            sum(frontend.failed_choices for frontend in self.frontends),
        )

    # as ranks' Listener

    def on_room(self, served: Served, rank: Rank) -> None:
        assert served.read_on is not None
        self._rank(served.read_on).enqueue(served)

    def on_read(self, served: Served, rank: Rank) -> None:
        self._host_of[rank.id.life].has_read(served)
        self._frontend(served).has_read(served)
        if served.read_on is None or served.decode_on is None:
            return
        model = rank.model
        kv_bytes = served.prompt_tokens * model.kv_bytes_per_token
        left_bytes = kv_bytes - served.sent_tokens * model.kv_bytes_per_token
        transfer_s = (model.transfer_setup_s + left_bytes / model.transfer_bytes_per_s) / model.speed
        if self._slower:
            ends = (self._host_of[end.life].place for end in (served.read_on, served.decode_on))
            transfer_s *= self._slower.get(shared(*ends), 1.0)
        self._clock.after(transfer_s, self._landed, served, rank, kv_bytes, transfer_s)

    def on_end(self, served: Served, rank: Rank) -> None:
        self._host_of[rank.id.life].give_back(served, reads=served.read_on is None)
        self._frontend(served).has_answered(served)
        self._ended(served)

    # inner

    def _ended(self, served: Served) -> None:
        """It is answered or refused: those of a closed loop that waited for it are due."""
        served.ended_s = self._clock.now_s
        for follower in self._followers.get(served.number, ()):
            follower.served.due_s = self._clock.now_s + follower.delay_s
            self._clock.at(follower.served.due_s, self._ask, follower.served)

    def _host(self, name: str, model: Model) -> Host:
        life, clock = f"{name}#1", self._clock
        host = Host(clock, life, model, self._report)
        feed = KvFeed(clock, partial(self._note, host))
        host.ranks = [
            Rank(RankId(name, life, rank), clock, model, self, self._on_gap, feed.of(rank))
            for rank in range(model.ranks)
        ]
        return host

    def _on_gap(self, seconds: float, count: int) -> None:
        self._gaps.append((seconds, count))

    def _note(self, host: Host, events: Sequence[KvEvent]) -> None:
        for frontend in self.frontends:
            frontend.note(host, events)

    def _report(self, host: Host, ranks: list[RankTaken]) -> None:
        for frontend in self.frontends:
            frontend.report(host, ranks)

    def _ask(self, served: Served) -> None:
        self._served.append(served)
        served.frontend = self._random.randrange(len(self.frontends))
        self._frontend(served).ask(served)

    def _dispatch(self, served: Served) -> None:
        decode = self._host_of[reservation_of(served).pair.decode.life]
        self._clock.after(decode.model.dispatch_s, self._submit, served)

    def _submit(self, served: Served) -> None:
        """Both legs arrive at their hosts. Where one has no room the other one is taken back."""
        reservation = reservation_of(served)
        pair = reservation.pair
        places = [(self._host_of[endpoint.life], endpoint.dp_rank) for endpoint in pair.endpoints]
        for host, rank in places:
            if not host.grant(served, rank, reservation):
                self._refusals += 1
                for life in list(served.grants):
                    self._host_of[life].give_back(served, reads=False)
                self._frontend(served).refused(served, host, rank)
                return
        served.decode_on = pair.decode.id
        if pair.prefill is None:
            self._rank(served.decode_on).enqueue(served)
        else:
            served.read_on = pair.prefill.id
            self._rank(served.decode_on).ask_for_room(served)

    def _landed(self, served: Served, prefill: Rank, kv_bytes: int, transfer_s: float) -> None:
        assert served.decode_on is not None
        served.first_s = self._clock.now_s
        self._host_of[prefill.id.life].give_back(served, reads=True)
        prefill.has_sent(served)
        self._frontend(served).has_sent(served, kv_bytes, transfer_s)
        self._rank(served.decode_on).join(served)

    def _rank(self, id: RankId) -> Rank:
        return self._host_of[id.life].ranks[id.dp_rank]

    def _frontend(self, served: Served) -> Frontend:
        return self.frontends[served.frontend]
