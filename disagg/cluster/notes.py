"""What a controller leaves to the one that comes after it: which engines there are, their lives, and who has met whom.

Way:   Fleet, Changes, [NotedRegistry] -> Notes: Ray's (detached/ray_notes.py), or none
       the next controller -> [Earlier.of] -> Controller, which adopts what still runs
Owns:  the words of the notes. What is noted of a life is there before its engine starts: no life comes twice
Fails: as Notes do. Whoever follows the table is told first: a slow store of notes delays no news
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from disagg.adapters import Adapter
from disagg.planning.plan import EnginePlan
from disagg.registry.memory import MemoryRegistry
from disagg.registry.records import EngineRecord, ModelRecord

BEGUN, IS_PLACED, WAS_READY, CHANGES = "begun", "placed", "ready", "changes"
ENGINE, RECORD, LAST, MET, ADAPTER, MODEL = "engine/", "record/", "last/", "met/", "adapter/", "model/"


class Notes(Protocol):
    async def write(self, key: str, value: object | None) -> None:
        """Returns once it is there; None takes it away. Of one key the last one asked for stays."""


class NoNotes:
    async def write(self, key: str, value: object | None) -> None:
        pass


class NotedRegistry(MemoryRegistry):
    """The controller's table, noted as it changes. Frontends are not: who keeps them alive knows them."""

    def __init__(self, notes: Notes) -> None:
        super().__init__()
        self._notes = notes

    def recall(self, earlier: Earlier) -> None:
        """What was noted and still holds."""
        for adapter in earlier.adapters:
            self._table.put_adapter(adapter)
        for pair in earlier.met:
            self._table.add_met(*pair)
        for model in earlier.models:
            self._table.put_model(model)

    async def put(self, record: EngineRecord) -> None:
        await super().put(record)
        await self._notes.write(f"{RECORD}{record.id}", record)

    async def remove(self, engine_id: str) -> None:
        record = self.records.get(engine_id)
        await super().remove(engine_id)
        if record is not None:
            await self._notes.write(f"{LAST}{engine_id}", record.incarnation)
            await self._notes.write(f"{RECORD}{engine_id}", None)

    async def add_met(self, prefill: str, decode: str) -> None:
        await super().add_met(prefill, decode)
        await self._notes.write(f"{MET}{prefill}/{decode}", (prefill, decode))

    async def forget(self, life: str) -> None:
        pairs = [(one, other) for peer in self.met.met_with(life) for one, other in ((life, peer), (peer, life))]
        await super().forget(life)
        for one, other in pairs:
            await self._notes.write(f"{MET}{one}/{other}", None)

    async def put_adapter(self, adapter: Adapter) -> None:
        await super().put_adapter(adapter)
        await self._notes.write(f"{ADAPTER}{adapter.name}", adapter)

    async def remove_adapter(self, name: str) -> None:
        await super().remove_adapter(name)
        await self._notes.write(f"{ADAPTER}{name}", None)

    async def put_model(self, record: ModelRecord) -> None:
        await super().put_model(record)
        await self._notes.write(f"{MODEL}{record.key}", record)

    async def remove_model(self, key: str) -> None:
        await super().remove_model(key)
        await self._notes.write(f"{MODEL}{key}", None)


@dataclass(slots=True)
class Earlier:
    """What an earlier controller of the deployment has noted."""

    is_placed: bool = False  # all engines of the start had their places
    was_ready: bool = False
    engines: dict[str, tuple[EnginePlan, str]] = field(default_factory=dict)  # by id: what it is run as, its place
    records: dict[str, EngineRecord] = field(default_factory=dict)
    incarnations: dict[str, int] = field(default_factory=dict)  # the last one of each name, also of those that are gone
    met: list[tuple[str, str]] = field(default_factory=list)
    adapters: list[Adapter] = field(default_factory=list)
    models: list[ModelRecord] = field(default_factory=list)
    changes: Any = None  # as Changes.kept made it

    @classmethod
    def of(cls, notes: Mapping[str, Any]) -> Earlier:
        def under(prefix: str) -> dict[str, Any]:
            return {key.removeprefix(prefix): value for key, value in notes.items() if key.startswith(prefix)}

        records: dict[str, EngineRecord] = under(RECORD)
        return cls(
            is_placed=notes.get(IS_PLACED, False),
            was_ready=notes.get(WAS_READY, False),
            engines=under(ENGINE),
            records=records,
            incarnations=under(LAST) | {name: record.incarnation for name, record in records.items()},
            met=list(under(MET).values()),
            adapters=[adapter for adapter in under(ADAPTER).values() if not adapter.is_leaving],
            models=list(under(MODEL).values()),
            changes=notes.get(CHANGES),
        )
