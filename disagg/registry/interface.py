"""The registry as everyone sees it: a small table with a watch. The controller writes, every frontend watches.

Facts are small: an engine's id has its record, a pair of lives has met, an adapter is there. The controller's own table
is in its memory (memory.py) and never waits for anybody. From there a Publisher brings it into a store: one in memory,
which the controller serves, a folder, or etcd (store.py). A Follower has a copy of it in each frontend.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from disagg.adapters import Adapter
from disagg.registry.met import Met
from disagg.registry.records import EngineRecord, FrontendRecord, ModelRecord, SealedSpec
from disagg.registry.table import Table, Watch


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

    @property
    def frontends(self) -> Mapping[int, FrontendRecord]:
        """By number; read only."""
        return self._table.frontends

    @property
    def models(self) -> Mapping[str, ModelRecord]:
        """By key, where there are several; read only."""
        return self._table.models

    @property
    def spec(self) -> SealedSpec | None:
        """None: none is published."""
        return self._table.spec

    def watch(self) -> Watch:
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
    async def put_frontend(self, record: FrontendRecord) -> None:
        """It listens. Replaces that of its number."""

    @abstractmethod
    async def remove_frontend(self, number: int) -> None: ...

    @abstractmethod
    async def put_model(self, record: ModelRecord) -> None:
        """Frontends serve it from now on. Replaces that of its key."""

    @abstractmethod
    async def remove_model(self, key: str) -> None: ...

    @abstractmethod
    async def put_spec(self, spec: SealedSpec) -> None:
        """What frontends elsewhere are told. Replaces the one before."""

    @abstractmethod
    async def forget(self, life: str) -> None:
        """Whom this life has met is of no use any more."""
