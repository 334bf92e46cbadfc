"""Which LoRA adapters one engine has, and how many legs run with each: the host's own book.

Way:   controller -> PlaneServer -> [HeldAdapters] -> Engine.load_adapter; a Submit names only what is in the book
Owns:  the names that legs may say. SGLang would load a name that it has known once again by itself, so it is never
       asked for one that is not here
Fails: what the engine says, and a change that takes longer than CHANGE_S, is the answer's `error`
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from disagg.adapters import Adapter
from disagg.plane import messages as m
from disagg.plane.engine import Engine

log = logging.getLogger(__name__)

CHANGE_S = 120.0  # of one adapter at the engine: its files may lie on a slow mount
Answer = Callable[[m.AdapterChanged], None]


class HeldAdapters:
    """`legs`: name -> how many legs run with it. Changes are made one after the other, in the order they came."""

    def __init__(self, engine: Engine, abort_legs_of: Callable[[str], None]) -> None:
        self._engine, self._abort_legs_of = engine, abort_legs_of
        self.legs: dict[str, int] = {}
        self._paths: dict[str, str] = {}
        self._one_at_a_time = asyncio.Lock()
        self._changing: set[asyncio.Task[None]] = set()

    def begins(self, name: str) -> None:
        if name:
            self.legs[name] += 1

    def ends(self, name: str) -> None:
        if self.legs.get(name):  # else it was unloaded under its last legs
            self.legs[name] -= 1

    def change(self, change: m.LoadAdapter | m.UnloadAdapter, answer: Answer) -> None:
        """`answer` is called once it is done, or has failed."""
        task = asyncio.get_running_loop().create_task(self._change(change, answer), name=f"adapter {change.name}")
        self._changing.add(task)
        task.add_done_callback(self._changing.discard)

    async def _change(self, change: m.LoadAdapter | m.UnloadAdapter, answer: Answer) -> None:
        error = ""
        try:
            async with self._one_at_a_time, asyncio.timeout(CHANGE_S):
                await (self._load(change) if isinstance(change, m.LoadAdapter) else self._unload(change.name))
        except ValueError as refused:
            error = str(refused) or "the engine refused it"
        except TimeoutError:
            error = f"not done within {CHANGE_S:g} s"
        except Exception as unforeseen:  # whoever asked waits for a word
            log.exception("adapter %s", change.name)
            error = f"{type(unforeseen).__name__}: {unforeseen}"
        answer(m.AdapterChanged(change.number, error))

    async def _load(self, change: m.LoadAdapter) -> None:
        if (there := self._paths.get(change.name)) is not None:
            if there != change.path:
                raise ValueError(f"it is there already, from {there}")
            return
        await self._engine.load_adapter(Adapter(change.name, change.path, change.pinned))
        self._paths[change.name], self.legs[change.name] = change.path, 0
        log.info("adapter %s is loaded from %s", change.name, change.path)

    async def _unload(self, name: str) -> None:
        if self._paths.pop(name, None) is None:
            return
        if self.legs.pop(name):
            self._abort_legs_of(name)
        await self._engine.unload_adapter(name)
        log.info("adapter %s is unloaded", name)
