"""Several models in one registry: keys of their own, and to each frontend's part only what is its model's."""

from __future__ import annotations

from disagg.adapters import Adapter
from disagg.registry.changes import Changes
from disagg.registry.keys import Keys, parse, read
from disagg.registry.of_model import of_model
from disagg.registry.records import EngineRecord, ModelRecord, ModelState, State
from disagg.registry.store import Entry
from disagg.registry.table import Table
from disagg.roles import Role

KEYS = Keys("prod", "both")


def engine(engine_id: str, role: Role = Role.AGGREGATED) -> EngineRecord:
    return EngineRecord(id=engine_id, role=role, state=State.READY, group=engine_id.partition(".")[0], incarnation=1)


def table() -> Table:
    both = Table()
    for engine_id in ("chat.prefill-0", "chat.decode-0", "small.aggregated-0"):
        both.put(engine(engine_id))
    both.add_met("chat.prefill-0#1", "chat.decode-0#1")
    both.add_met("small.aggregated-0#1", "small.aggregated-0#1")
    both.put_adapter(Adapter("chat:sql", "/a"))
    both.put_adapter(Adapter("small:sql", "/b"))
    for number, key in enumerate(("chat", "small")):
        both.put_model(ModelRecord(key=key, number=number, state=ModelState.SERVING, spec={"name": key}))
    return both


def test_each_model_has_keys_of_its_own_also_where_something_goes() -> None:
    both = table()
    keys = KEYS.spelt(both.snapshot())
    here = "disagg/prod/both"
    assert sorted(keys) == [
        f"{here}/chat/adapter/chat:sql",
        f"{here}/chat/engine/chat.decode-0",
        f"{here}/chat/engine/chat.prefill-0",
        f"{here}/chat/met/chat.prefill-0#1/chat.decode-0#1",
        f"{here}/chat/model/chat",
        f"{here}/small/adapter/small:sql",
        f"{here}/small/engine/small.aggregated-0",
        f"{here}/small/met/small.aggregated-0#1/small.aggregated-0#1",
        f"{here}/small/model/small",
    ]
    copy = Table()
    copy.apply(read({key: Entry(value or b"", 1) for key, value in keys.items()}))
    assert (copy.records, copy.adapters, copy.models) == (both.records, both.adapters, both.models)
    gone = KEYS.spelt(Changes(records={"chat.decode-0": None}, adapters={"small:sql": None}))
    assert gone == {f"{here}/chat/engine/chat.decode-0": None, f"{here}/small/adapter/small:sql": None}
    assert {parse(key).model for key in keys} == {"chat", "small"}  # type: ignore[union-attr]


async def test_a_frontends_part_sees_its_model_alone() -> None:
    both = table()
    views = of_model(both.watch(), "chat")
    view = await anext(views)
    assert sorted(view.records) == ["chat.decode-0", "chat.prefill-0"]
    assert {name: (each.name, each.path) for name, each in view.adapters.items()} == {"sql": ("sql", "/a")}
    assert view.changes.records.keys() == view.records.keys()
    assert view.changes.met == {("chat.prefill-0#1", "chat.decode-0#1"): True}
    both.remove("small.aggregated-0")
    both.remove_adapter("chat:sql")
    view = await anext(views)
    assert (view.changes.records, view.changes.adapters, view.adapters) == ({}, {"sql": None}, {})
    both.remove("chat.decode-0")
    view = await anext(views)
    assert view.changes.records == {"chat.decode-0": None}
    assert sorted(view.records) == ["chat.prefill-0"]


async def test_the_only_model_sees_all_as_it_is() -> None:
    one = Table()
    one.put(engine("with.a.dot"))
    view = await anext(of_model(one.watch(), ""))
    assert view.records is one.records
