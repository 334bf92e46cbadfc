"""The registry in one process's memory: the controller's own, and what RegistryServer serves to frontends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from disagg.registry.met import Met
from disagg.registry.records import EngineRecord
from disagg.registry.table import Table, View


class MemoryRegistry:
    """Implements disagg.registry.interface.Registry."""

    def __init__(self) -> None:
        self._table = Table()

    @property
    def revision(self) -> int:
        return self._table.revision

    @property
    def records(self) -> Mapping[str, EngineRecord]:
        return self._table.records

    @property
    def met(self) -> Met:
        return self._table.met

    async def put(self, record: EngineRecord) -> None:
        self._table.put(record)

    async def remove(self, engine_id: str) -> None:
        self._table.remove(engine_id)

    async def add_met(self, prefill: str, decode: str) -> None:
        self._table.add_met(prefill, decode)

    async def forget(self, life: str) -> None:
        self._table.forget(life)

    def watch(self) -> AsyncIterator[View]:
        return self._table.watch()
