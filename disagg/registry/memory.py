"""The registry in one process's memory: the controller's own, which a Publisher brings to where others see it."""

from __future__ import annotations

from disagg.adapters import Adapter
from disagg.registry.interface import Registry
from disagg.registry.records import EngineRecord, FrontendRecord, ModelRecord, SealedSpec


class MemoryRegistry(Registry):
    async def put(self, record: EngineRecord) -> None:
        self._table.put(record)

    async def remove(self, engine_id: str) -> None:
        self._table.remove(engine_id)

    async def add_met(self, prefill: str, decode: str) -> None:
        self._table.add_met(prefill, decode)

    async def put_adapter(self, adapter: Adapter) -> None:
        self._table.put_adapter(adapter)

    async def remove_adapter(self, name: str) -> None:
        self._table.remove_adapter(name)

    async def put_frontend(self, record: FrontendRecord) -> None:
        self._table.put_frontend(record)

    async def remove_frontend(self, number: int) -> None:
        self._table.remove_frontend(number)

    async def put_model(self, record: ModelRecord) -> None:
        self._table.put_model(record)

    async def remove_model(self, key: str) -> None:
        self._table.remove_model(key)

    async def put_spec(self, spec: SealedSpec) -> None:
        self._table.put_spec(spec)

    async def forget(self, life: str) -> None:
        self._table.forget(life)
