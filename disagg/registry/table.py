"""The table itself, and those who watch it: engine records, and who has met whom.

Way:   a backend (memory, a follower's) -> [Table] -> watchers: routing, status, who waits for READY
In:    one change after another; out: to each watcher a View, at once and after each change, what came between merged
Owns:  the newest of everything, under a revision that grows by one with each change
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

from disagg.adapters import Adapter
from disagg.registry.changes import Changes
from disagg.registry.met import Met
from disagg.registry.records import EngineRecord, FrontendRecord, ModelRecord, SealedSpec


@dataclass(frozen=True, slots=True)
class View:
    """What a watcher sees. `records` (by engine id), `met` and `adapters` (by name) are the table's own: read only, and
    always the newest.

    `changes`: what is new since this watcher's last view, for whoever wants to do no more than that; in its first
    view everything is.
    """

    records: Mapping[str, EngineRecord]
    met: Met
    changes: Changes
    adapters: Mapping[str, Adapter] = field(default_factory=dict)


class Table:
    """Each change costs O(change), and as much once more for each watcher."""

    def __init__(self) -> None:
        self.revision = 0
        self._records: dict[str, EngineRecord] = {}
        self._met = Met()
        self._adapters: dict[str, Adapter] = {}
        self._frontends: dict[int, FrontendRecord] = {}
        self._models: dict[str, ModelRecord] = {}
        self.spec: SealedSpec | None = None  # what frontends elsewhere are told; read only
        self._watches: list[weakref.ref[Watch]] = []  # in the order they came; one that nobody holds any more is gone
        self.is_closed = False

    @property
    def records(self) -> Mapping[str, EngineRecord]:
        """By engine id."""
        return self._records

    @property
    def met(self) -> Met:
        """Read only: it changes through `add_met` and `forget`."""
        return self._met

    @property
    def adapters(self) -> Mapping[str, Adapter]:
        """By name: those that every engine which serves has."""
        return self._adapters

    @property
    def frontends(self) -> Mapping[int, FrontendRecord]:
        """By number: those that listen."""
        return self._frontends

    @property
    def models(self) -> Mapping[str, ModelRecord]:
        """By key, where there are several: those that frontends serve."""
        return self._models

    def put_model(self, record: ModelRecord) -> None:
        """Replaces that of its key."""
        if self._models.get(record.key) != record:
            self._models[record.key] = record
            self._tell(lambda changes: changes.models.update({record.key: record}))

    def remove_model(self, key: str) -> None:
        if self._models.pop(key, None) is not None:
            self._tell(lambda changes: changes.models.update({key: None}))

    def put_frontend(self, record: FrontendRecord) -> None:
        """Replaces that of its number."""
        if self._frontends.get(record.number) != record:
            self._frontends[record.number] = record
            self._tell(lambda changes: changes.frontends.update({record.number: record}))

    def remove_frontend(self, number: int) -> None:
        if self._frontends.pop(number, None) is not None:
            self._tell(lambda changes: changes.frontends.update({number: None}))

    def put_spec(self, spec: SealedSpec) -> None:
        if self.spec != spec:
            self.spec = spec
            self._tell(lambda changes: setattr(changes, "spec", spec))

    def put_adapter(self, adapter: Adapter) -> None:
        """Replaces that of its name."""
        if self._adapters.get(adapter.name) != adapter:
            self._adapters[adapter.name] = adapter
            self._tell(lambda changes: changes.adapters.update({adapter.name: adapter}))

    def remove_adapter(self, name: str) -> None:
        if self._adapters.pop(name, None) is not None:
            self._tell(lambda changes: changes.adapters.update({name: None}))

    def put(self, record: EngineRecord) -> None:
        """Replaces the record of `record.id`."""
        if self._records.get(record.id) != record:
            self._records[record.id] = record
            self._tell(lambda changes: changes.records.update({record.id: record}))

    def remove(self, engine_id: str) -> None:
        if self._records.pop(engine_id, None) is not None:
            self._tell(lambda changes: changes.records.update({engine_id: None}))

    def add_met(self, prefill: str, decode: str) -> None:
        """A real transfer between these two lives has succeeded."""
        if self._met.add(prefill, decode):
            self._tell(lambda changes: changes.met.update({(prefill, decode): True}))

    def forget(self, life: str) -> None:
        """Whom this life has met is of no use any more."""
        if pairs := self._met.forget(life):
            self._tell(lambda changes: changes.met.update(dict.fromkeys(pairs, False)))

    def apply(self, changes: Changes) -> None:
        """Takes in what has happened to another table, and its revision."""
        for pair, have_met in changes.met.items():
            if have_met:
                self.add_met(*pair)
            elif self._met.remove(*pair):
                self._tell(lambda changes, pair=pair: changes.met.update({pair: False}))  # type: ignore[misc]
        for engine_id, record in changes.records.items():
            if record is None:
                self.remove(engine_id)
            else:
                self.put(record)
        for name, adapter in changes.adapters.items():
            if adapter is None:
                self.remove_adapter(name)
            else:
                self.put_adapter(adapter)
        for number, frontend in changes.frontends.items():
            if frontend is None:
                self.remove_frontend(number)
            else:
                self.put_frontend(frontend)
        for key, model in changes.models.items():
            if model is None:
                self.remove_model(key)
            else:
                self.put_model(model)
        if changes.spec is not None:
            self.put_spec(changes.spec)
        self.revision = changes.revision

    def snapshot(self) -> Changes:
        """Everything, as changes of an empty table."""
        met = dict.fromkeys(self._met, True)
        return Changes(
            self.revision,
            met,
            records=dict(self._records),
            adapters=dict(self._adapters),
            frontends=dict(self._frontends),
            models=dict(self._models),
            spec=self.spec,
        )

    def view(self) -> View:
        """As the first one of a watch."""
        return View(self._records, self._met, self.snapshot(), self._adapters)

    def watch(self) -> Watch:
        watch = Watch(self)
        self._watches.append(weakref.ref(watch))
        return watch

    def close(self) -> None:
        """Nothing will change any more: every watch ends, after what it has not yielded yet."""
        self.is_closed = True
        for watch in self._living():
            watch.wake()

    def _tell(self, change: Callable[[Changes], object]) -> None:
        self.revision += 1
        for watch in self._living():
            change(watch.pending)
            watch.wake()

    def _living(self) -> list[Watch]:
        watches = [watch for ref in self._watches if (watch := ref()) is not None]
        if len(watches) < len(self._watches):
            self._watches = [weakref.ref(watch) for watch in watches]
        return watches


class Watch(AsyncIterator[View]):
    """One watcher's place in a table. What happens while it is busy is merged; it ends when the table is closed."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self.pending = table.snapshot()
        self._is_first = True
        self._changed = asyncio.Event()

    def wake(self) -> None:
        self._changed.set()

    async def changed(self) -> None:
        """Until there is something to yield, or an end."""
        while not self.pending and not self._is_first and not self._table.is_closed:
            self._changed.clear()
            await self._changed.wait()

    async def __anext__(self) -> View:
        await self.changed()
        if not self.pending and not self._is_first:
            raise StopAsyncIteration
        table, changes = self._table, self.pending
        self.pending, self._is_first = Changes(), False
        changes.revision = table.revision
        return View(table.records, table.met, changes, table.adapters)
