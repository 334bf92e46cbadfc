"""Rooms are never 0, never twice, congruent to the prefill rank; phases move along the table alone."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disagg.coordinator.phases import LIVE, NEXT, Event, IllegalTransition, Phase, advance
from disagg.coordinator.rooms import Rooms


@settings(deadline=None)  # a busy machine is no failure
@given(seed=st.integers(0, 2**32), dp_size=st.integers(1, 72), data=st.data())
def test_rooms(seed: int, dp_size: int, data: st.DataObject) -> None:
    rooms, rank = Rooms(Random(seed)), data.draw(st.integers(0, dp_size - 1))
    taken = [rooms.take(dp_size, rank) for _ in range(20)]
    assert len(set(taken)) == len(rooms) == 20
    assert all(0 < room < 1 << 63 and room % dp_size == rank for room in taken)
    for room in taken:
        rooms.give_back(room)
    with pytest.raises(KeyError):
        rooms.give_back(taken[0])


class _Edge(Random):
    """Draws 0, then the highest numbers, then one number twice."""

    def __init__(self) -> None:
        super().__init__(0)
        self._draws = iter([0, 2**63 - 1, 2**63 - 2, 70, 70, 71])

    def getrandbits(self, _bits: int) -> int:
        return next(self._draws)


def test_rooms_at_the_edges() -> None:
    rooms = Rooms(_Edge())
    assert rooms.take(2, 0) == 2**63 - 2
    assert rooms.take(2, 1) == 2**63 - 1
    assert rooms.take(10, 0) == 70


class _Thing:
    id = "thing"

    def __init__(self, phase: Phase) -> None:
        self.phase, self.marks = phase, dict[str, float]()

    def mark(self, name: str, at_s: float) -> None:
        self.marks[name] = at_s


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("event", Event)
def test_phases(phase: Phase, event: Event) -> None:
    thing = _Thing(phase)
    if (phase, event) in NEXT:
        advance(thing, event, 1.5)
        assert thing.phase is NEXT[phase, event]
        assert thing.marks == {event.value: 1.5}
    else:
        with pytest.raises(IllegalTransition):
            advance(thing, event, 1.5)
        assert thing.phase is phase


def test_every_live_phase_can_be_left_by_failure_and_by_the_client() -> None:
    assert all((phase, event) in NEXT for phase in LIVE for event in (Event.FAILURE, Event.CLIENT_GONE))
    assert LIVE.isdisjoint({Phase.FINISHED, Phase.FAILED, Phase.CANCELLED})
