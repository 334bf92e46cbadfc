"""Six bugs, each planted in a program that is otherwise right: a short soak finds each, and shrinks it to a seed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from disagg.cluster import canaries
from disagg.cluster.proving import Prover
from disagg.cluster.supervisor import EngineSupervisor
from disagg.coordinator.attempt import Attempt
from disagg.coordinator.deadlines import DeadlineTimer
from disagg.coordinator.phases import Phase
from disagg.plane import messages as m
from disagg.plane.client import PlaneClient
from disagg.registry.records import State
from disagg.simulation.campaign import run_campaign
from disagg.simulation.shrink import shrink
from transfer.canary import CanaryFailed

pytestmark = pytest.mark.slow

GAP = 4


def double_release_on_an_abort_during_migration(patch: pytest.MonkeyPatch) -> None:
    close = Attempt.close

    def close_and_release_again(self: Attempt) -> None:
        close(self)
        if self.request.emitted_ids and self._failure is not None:  # a request with tokens has lost its pair
            self._shared.rooms.give_back(self.room)

    patch.setattr(Attempt, "close", close_and_release_again)


def a_stale_incarnations_frame_is_accepted(patch: pytest.MonkeyPatch) -> None:
    step = PlaneClient._step

    def take_any(self: PlaneClient, frame: m.Step) -> None:
        step(self, msgspec.structs.replace(frame, incarnation=self.incarnation))

    patch.setattr(PlaneClient, "_step", take_any)


def no_deadline_while_bootstrapping(patch: pytest.MonkeyPatch) -> None:
    watch = DeadlineTimer.watch

    def watch_some(self: DeadlineTimer) -> None:
        if self.request.phase not in (Phase.DISPATCHED, Phase.BOOTSTRAPPING):
            watch(self)

    patch.setattr(DeadlineTimer, "watch", watch_some)


def a_ready_engine_is_never_sick(patch: pytest.MonkeyPatch) -> None:
    sick = EngineSupervisor.sick

    def heed_while_starting(self: EngineSupervisor, why: str) -> None:
        if self.record.state is not State.READY:
            sick(self, why)

    patch.setattr(EngineSupervisor, "sick", heed_while_starting)


def a_probe_that_fails_is_a_proof(patch: pytest.MonkeyPatch) -> None:
    probe = Prover.probe_all_ranks

    async def probe_somehow(self: Prover, *asked: Any) -> None:
        with contextlib.suppress(CanaryFailed):
            await probe(self, *asked)

    patch.setattr(Prover, "probe_all_ranks", probe_somehow)


def canaries_blame_both_engines_of_a_pair(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(canaries, "blame", lambda pair, _probed: set(pair))


@pytest.mark.parametrize(
    ("plant", "seen_as", "seed", "requests"),  # the seed, of the first dozen, that shows it and its least soonest
    [
        (double_release_on_an_abort_during_migration, "KeyError", 6, 500),
        (a_stale_incarnations_frame_is_accepted, "wrong tokens", 11, 500),
        (no_deadline_while_bootstrapping, "past its deadline in", 1, 500),
        (a_ready_engine_is_never_sick, "has been out of order for", 1, 150),
        (a_probe_that_fails_is_a_proof, "no KV has gone that way", 8, 150),
        (canaries_blame_both_engines_of_a_pair, "was in order, and is", 8, 150),
    ],
)
def test_a_planted_bug_is_found_and_shrunk_to_a_seed(
    plant: Callable[[pytest.MonkeyPatch], None], seen_as: str, seed: int, requests: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        plant(patch)
        found = run_campaign(seed, requests, gap_requests=GAP)
        assert seen_as in str(found.violation)
        least = shrink(found, run_campaign, runs_max=20)
        print(f"{least.requests} requests, {least.strikes}: {least.violation}")
        assert least.requests <= found.requests
        assert len(least.strikes) == 1
        again = run_campaign(least.seed, least.requests, least.strikes)
        assert (again.violation is not None, again.event_hash) == (True, least.event_hash)
    assert run_campaign(least.seed, least.requests, least.strikes).violation is None  # without the bug


def test_the_same_seed_takes_the_same_steps() -> None:
    first, second, other = (run_campaign(seed, 200, gap_requests=10) for seed in (3, 3, 4))
    assert (first.event_hash, first.event_count, first.strikes) == (
        second.event_hash,
        second.event_count,
        second.strikes,
    )
    assert first.event_hash != other.event_hash
