"""A registry in a store that others share: which store, and the controller's part in it. The only place that knows the
kinds.

Way:   the YAML's `registry` -> [SharedRegistry] of the controller; [Shared] in a FrontendSpec -> a frontend's Follower
Fails: StartError from `start`: the store does not answer, or another deployment has the name
"""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from random import Random

import msgspec

from disagg.errors import StartError
from disagg.registry.etcd_access import Access
from disagg.registry.interface import Watched
from disagg.registry.keys import Keys
from disagg.registry.publisher import Publisher
from disagg.registry.records import ControllerRecord
from disagg.registry.store import Store

SETTLE_S = 1.0  # for followers to take in what is published; nobody tells when they have


class FileAt(msgspec.Struct, frozen=True, tag="file"):
    folder: str


class EtcdAt(msgspec.Struct, frozen=True, tag="etcd"):
    endpoints: tuple[str, ...]  # host:port
    access: Access = Access()


StoreAt = FileAt | EtcdAt


class Shared(msgspec.Struct, frozen=True):
    """Where a deployment's keys are."""

    at: StoreAt
    keys: Keys


def store_at(text: str) -> StoreAt:
    """`file:/FOLDER` or `etcd:HOST:PORT,HOST:PORT`. Raises StartError."""
    kind, _, where = text.partition(":")
    if kind == "file" and where:
        return FileAt(str(Path(where).expanduser().absolute()))
    if kind == "etcd" and all(":" in endpoint for endpoint in where.split(",")):
        return EtcdAt(tuple(where.split(",")))
    raise StartError("registry", f"'{text}' names none", "say file:/FOLDER, or etcd:HOST:PORT,HOST:PORT")


def open_store(at: StoreAt) -> Store:
    match at:
        case FileAt(folder):
            from disagg.registry.file_store import FileStore

            return FileStore(Path(folder))
        case EtcdAt(endpoints, access):
            from disagg.registry.etcd_store import EtcdStore  # grpc takes 28 MB: only where it is wanted

            return EtcdStore(endpoints, access)


class SharedRegistry:
    """Publishes the controller's table from `start` to `close`. `run`: the name of this run of the deployment, or of
    this one of its controllers; `is_taken`: another one has the deployment's name."""

    def __init__(self, registry: Watched, shared: Shared, run: str, lease_s: float) -> None:
        self._store = open_store(shared.at)
        me = ControllerRecord(run=run, host=socket.gethostname(), pid=os.getpid())
        self._publisher = Publisher(registry, self._store, shared.keys, me, lease_s, Random())
        self._publishing: asyncio.Task[None] | None = None

    @property
    def is_taken(self) -> asyncio.Event:
        return self._publisher.is_taken

    async def claim(self, control: str) -> None:
        """Takes the deployment's name; `control`: host:port where its controller is asked. Raises StartError."""
        await self._publisher.begin(control)

    async def start(self, _host: str) -> int:
        """As RegistryServer's, once it is claimed; 0: frontends ask the store."""
        self._publishing = asyncio.create_task(self._publisher.run(), name="publish the registry")
        return 0

    async def all_have_seen(self, limit_s: float) -> bool:
        """Waits until frontends may be taken to have what the table says now; false when it is not even published."""
        if not await self._publisher.published(limit_s):
            return False
        await asyncio.sleep(SETTLE_S)
        return True

    async def close(self) -> None:
        if self._publishing is not None:
            self._publishing.cancel()
        await self._publisher.end()
        await self._store.close()
