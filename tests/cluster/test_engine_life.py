"""An engine's life goes by its table: what is not in it is refused and changes nothing."""

from __future__ import annotations

import pytest

from disagg.cluster.engine_life import NEXT, EngineLife, Event, IllegalTransition
from disagg.registry.records import EngineRecord, State
from disagg.roles import Role


class Published:
    def __init__(self, state: State) -> None:
        self.records: list[EngineRecord] = []
        record = EngineRecord(id="decode-0", role=Role.DECODE, state=state, incarnation=3)
        self.now_s = 100.0
        self.life = EngineLife(record, self.publish, lambda: self.now_s)

    async def publish(self, record: EngineRecord) -> None:
        self.records.append(record)


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("state", State)
async def test_the_table_is_the_law(state: State, event: Event) -> None:
    it = Published(state)
    before = it.life.record
    if (state, event) in NEXT:
        assert it.life.may(event)
        await it.life.advance(event)
        assert it.life.record.state is NEXT[state, event]
        assert it.records == [it.life.record]
    else:
        assert not it.life.may(event)
        with pytest.raises(IllegalTransition, match=f"{event.name} in {state.name}"):
            await it.life.advance(event, detail="changes nothing")
        assert (it.life.record, it.records) == (before, [])


def test_every_state_is_reached_and_left() -> None:
    assert {state for state, _ in NEXT} == set(State)
    assert set(NEXT.values()) == set(State) - {State.NEW}


async def test_a_new_incarnation_knows_nothing_of_the_last() -> None:
    it = Published(State.DEAD)
    await it.life.note(plane="host:1", bootstrap="host:2", node="host", pids={"host": 1}, evict=True)
    await it.life.advance(Event.START, detail="waits for its place")
    record = it.life.record
    assert record.life == "decode-0#4"
    assert (record.plane, record.bootstrap, record.node, record.pids, record.evict) == ("", "", "", {}, False)
    assert record.detail == "waits for its place"


async def test_since_when_it_is_so() -> None:
    it = Published(State.STARTING)
    it.now_s = 200.0
    await it.life.advance(Event.PROVEN)
    it.now_s = 300.0
    await it.life.advance(Event.PROVEN, lane="tcp")
    await it.life.note(detail="something")
    assert it.life.record.since_s == 200.0
