"""The registry as everyone sees it: a small table of engine records with a watch."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from disagg.registry.records import EngineRecord


class Registry(Protocol):
    async def put(self, record: EngineRecord) -> None:
        """Replaces the record of `record.id`."""

    async def remove(self, engine_id: str) -> None: ...

    def watch(self) -> AsyncIterator[dict[str, EngineRecord]]:
        """Yields the whole table at once and again after each change; changes in between may be merged."""
