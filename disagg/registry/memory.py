"""The registry in one process's memory: the controller's own, and what RegistryServer serves to frontends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from disagg.registry.records import EngineRecord


class MemoryRegistry:
    def __init__(self) -> None:
        self.records: dict[str, EngineRecord] = {}
        self._changed = asyncio.Event()

    async def put(self, record: EngineRecord) -> None:
        if self.records.get(record.id) != record:
            self.records = self.records | {record.id: record}
            self._tell()

    async def remove(self, engine_id: str) -> None:
        if engine_id in self.records:
            self.records = {key: record for key, record in self.records.items() if key != engine_id}
            self._tell()

    async def watch(self) -> AsyncIterator[dict[str, EngineRecord]]:
        while True:
            changed = self._changed
            yield self.records
            await changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
