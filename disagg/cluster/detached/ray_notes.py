"""A controller's notes in the store of Ray's own head, beside what Ray itself needs to restart an actor: whatever loses
the ones loses the others.

Way:   NotedRegistry, Fleet, Changes -> [RayNotes] =Ray=> GCS; a new controller, the command <- [RayNotes.read]
In:    keys and values of notes.py; values are pickled, for the same release of disagg reads them
Fails: as Ray's calls do while its head is away: they wait
"""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

from ray.experimental import internal_kv

SPACE = "disagg"


class RayNotes:
    def __init__(self, namespace: str, deployment: str) -> None:
        self._prefix = f"{namespace}/{deployment}/"
        self._one_at_a_time = asyncio.Lock()  # in the order in which they were asked for

    async def write(self, key: str, value: object | None) -> None:
        async with self._one_at_a_time:
            await asyncio.to_thread(self._write, f"{self._prefix}{key}", value)

    async def read(self) -> dict[str, Any]:
        """All of them, by key."""
        async with self._one_at_a_time:
            return await asyncio.to_thread(self._read)

    async def clear(self) -> None:
        async with self._one_at_a_time:
            await asyncio.to_thread(internal_kv._internal_kv_del, self._prefix, del_by_prefix=True, namespace=SPACE)

    def _write(self, key: str, value: object | None) -> None:
        if value is None:
            internal_kv._internal_kv_del(key, namespace=SPACE)
        else:
            internal_kv._internal_kv_put(key, pickle.dumps(value), namespace=SPACE)

    def _read(self) -> dict[str, Any]:
        found = {}
        for key in internal_kv._internal_kv_list(self._prefix, namespace=SPACE):
            value = internal_kv._internal_kv_get(key, namespace=SPACE)
            if value is not None:  # else it went this moment
                found[key.decode().removeprefix(self._prefix)] = pickle.loads(value)  # noqa: S301 - our own
        return found
