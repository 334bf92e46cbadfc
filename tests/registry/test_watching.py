"""Watchers of a table: everything at once, then what changes, merged while they are busy; and never another table."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from disagg.registry.records import EngineRecord, State
from disagg.registry.table import Table, Watch
from disagg.roles import Role

PREFILLS, DECODES = ("prefill-0#1", "prefill-1#1"), ("decode-0#1", "decode-1#1")


def record(engine_id: str, state: State = State.STARTING) -> EngineRecord:
    role = Role.PREFILL if engine_id.startswith("prefill") else Role.DECODE
    return EngineRecord(id=engine_id, role=role, state=state, incarnation=1)


def table_of(records: Iterable[EngineRecord], pairs: Iterable[tuple[str, str]] = ()) -> Table:
    table = Table()
    for prefill, decode in pairs:
        table.add_met(prefill, decode)
    for each in records:
        table.put(each)
    return table


ids = st.sampled_from(["prefill-0", "prefill-1", "decode-0", "decode-1"])
steps = st.one_of(
    st.tuples(st.just("put"), st.builds(record, ids, st.sampled_from(State))),
    st.tuples(st.just("remove"), ids),
    st.tuples(st.just("meet"), st.tuples(st.sampled_from(PREFILLS), st.sampled_from(DECODES))),
    st.tuples(st.just("forget"), st.sampled_from(PREFILLS + DECODES)),
    st.tuples(st.just("look"), st.integers(0, 2)),  # which watcher
    st.tuples(st.just("come"), st.none()),
)


@settings(deadline=None)
@given(st.lists(steps))
def test_whenever_a_watcher_looks_its_copy_is_the_table(done: list[tuple[str, object]]) -> None:
    async def scenario() -> None:
        table, watchers = Table(), list[tuple[Watch, Table]]()
        for what, of in done:
            match what, of:
                case "put", EngineRecord():
                    table.put(of)
                case "remove", str():
                    table.remove(of)
                case "meet", (str(prefill), str(decode)):
                    table.add_met(prefill, decode)
                case "forget", str():
                    table.forget(of)
                case "come", _:
                    watchers.append((table.watch(), Table()))
                case "look", int() if of < len(watchers) and watchers[of][0].pending:  # else it would wait
                    await look(*watchers[of])
        table.put(record("last-0"))
        for watch, copy in watchers:
            await look(watch, copy)
            assert (copy.records, copy.met, copy.revision) == (table.records, table.met, table.revision)

    async def look(watch: Watch, copy: Table) -> None:
        view = await anext(watch)
        copy.apply(view.changes)

    asyncio.run(scenario())


async def test_a_watcher_gets_everything_first_and_then_changes_alone() -> None:
    table = table_of([record("prefill-0"), record("decode-0")], [(PREFILLS[0], DECODES[0])])
    watch = table.watch()
    first = await anext(watch)
    assert first.changes.records == first.records == table.records
    assert list(first.changes.met) == [(PREFILLS[0], DECODES[0])]
    table.add_met(PREFILLS[0], DECODES[1])
    second = await anext(watch)
    assert (second.changes.records, list(second.changes.met)) == ({}, [(PREFILLS[0], DECODES[1])])
    assert len(second.met) == 2
    table.forget(DECODES[1])
    table.remove("decode-0")
    third = await anext(watch)
    assert (third.changes.met, third.changes.records) == ({(PREFILLS[0], DECODES[1]): False}, {"decode-0": None})


async def test_what_changes_nothing_wakes_nobody() -> None:
    table = table_of([record("decode-0")], [(PREFILLS[0], DECODES[0])])
    watch = table.watch()
    await anext(watch)
    table.put(record("decode-0"))
    table.add_met(PREFILLS[0], DECODES[0])
    table.forget("decode-7#1")
    table.remove("decode-7")
    waiting = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0)
    assert not waiting.done()
    table.close()
    assert [view async for view in watch] == []
    await asyncio.gather(waiting, return_exceptions=True)


async def test_a_closed_table_still_tells_what_it_has_not_told() -> None:
    table = table_of([record("decode-0")])
    watch = table.watch()
    await anext(watch)
    table.put(record("decode-0", State.READY))
    table.close()
    assert [list(view.changes.records) async for view in watch] == [["decode-0"]]
    assert [list(view.records) async for view in table.watch()] == [["decode-0"]]


async def test_a_watcher_that_went_away_is_told_nothing() -> None:
    table = Table()
    watch = table.watch()
    await anext(watch)
    del watch
    gc.collect()
    table.put(record("decode-0"))
    assert table._watches == []
