"""The registry as everyone sees it: a small table with a watch. The controller writes, every frontend watches.

Keys are small, one a fact: an engine's id has its record, a pair of lives has met, an adapter is there. A backend
(memory; later file and etcd) keeps them wherever it likes, and a Table of them for those who watch here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping

from disagg.adapters import Adapter
from disagg.registry.met import Met
from disagg.registry.records import EngineRecord
from disagg.registry.table import Table, View


class Watched:
    """What whoever only reads needs. Whoever writes changes `_table`."""

    def __init__(self) -> None:
        self._table = Table()

    @property
    def revision(self) -> int:
        """Grows with each change."""
        return self._table.revision

    @property
    def records(self) -> Mapping[str, EngineRecord]:
        """By engine id; read only."""
        return self._table.records

    @property
    def met(self) -> Met:
        """Read only."""
        return self._table.met

    @property
    def adapters(self) -> Mapping[str, Adapter]:
        """By name; read only."""
        return self._table.adapters

    def watch(self) -> AsyncIterator[View]:
        """Yields a view at once, and again after each change; changes in between may be merged. Ends when the
        registry is gone."""
        return self._table.watch()


class Registry(Watched, ABC):
    @abstractmethod
    async def put(self, record: EngineRecord) -> None:
        """Replaces the record of `record.id`."""

    @abstractmethod
    async def remove(self, engine_id: str) -> None: ...

    @abstractmethod
    async def add_met(self, prefill: str, decode: str) -> None:
        """A real transfer between these two lives has succeeded."""

    @abstractmethod
    async def put_adapter(self, adapter: Adapter) -> None:
        """Replaces that of its name. Every engine that serves has it."""

    @abstractmethod
    async def remove_adapter(self, name: str) -> None: ...

    @abstractmethod
    async def forget(self, life: str) -> None:
        """Whom this life has met is of no use any more."""
