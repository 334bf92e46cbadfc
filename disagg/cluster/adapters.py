"""The adapters of a deployment: every engine of its model has them before anybody may name them.

Way:   operator -> frontend -> control -> [Adapters.load, unload] -> plane -> every engine; then the registry, and so
       every frontend. An engine that comes up -> [bring] -> has all of them before it is proven
Owns:  which adapters there are to be, and the engines that are up
Fails: `load` and `unload` return why not. One engine that cannot load it, and it is taken from the others again;
       `bring` raises StartError: an engine that lacks one does not serve
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from pathlib import PurePosixPath
from typing import Protocol

from msgspec.structs import replace

from disagg.adapters import ADAPTERS_MAX, PATH_BYTES_MAX, Adapter, problem_of_name
from disagg.cluster.live import LiveEngine
from disagg.cluster.runtime import Runtime
from disagg.errors import LegLost, StartError
from disagg.lives import adapter_in, adapter_key, group_of
from disagg.plane.messages import LoadAdapter, UnloadAdapter
from disagg.registry.interface import Registry

log = logging.getLogger(__name__)

CHANGE_S = 125.0  # beyond what a host allows its engine (disagg/plane/adapters.py)
SEEN_S = 5.0  # for all frontends to take in that one comes, or goes
POLL_S = 0.1
QUIET_S = 0.5  # no engine runs it for so long: a request that was on its way has come by then
WAITS_MAX_S = 120.0  # for the requests that run with an adapter that is to go
CHANGES_MAX = 16  # that wait for one another


async def _nobody_looks(_limit_s: float) -> bool:
    return True


class Brought(Protocol):
    """What an engine's life has to do with adapters."""

    async def bring(self, live: LiveEngine) -> None: ...

    def leave(self, life: str) -> None: ...

    async def stop(self) -> None: ...


class Adapters:
    """Of one model. `group`: which of several; the registry has its adapters under names of their own.

    `model`: its name, if the deployment takes adapters; None: it takes none. `given`: those of the YAML.
    `drain_s`: how long requests that run with an adapter may hold up its end. `all_have_seen`: waits until all
    frontends have the registry's newest state."""

    def __init__(
        self,
        registry: Registry,
        runtime: Runtime,
        model: str | None,
        given: Iterable[Adapter],
        drain_s: float,
        group: str = "",
    ) -> None:
        self._registry, self._runtime, self._model, self._drain_s = registry, runtime, model, drain_s
        self._group = group
        self._wanted = {adapter.name: adapter for adapter in given}  # listed, or being loaded
        self._up: dict[str, LiveEngine] = {}  # by life
        self._one_at_a_time = asyncio.Lock()
        self._changes: set[asyncio.Task[str | None]] = set()
        self.all_have_seen: Callable[[float], Awaitable[bool]] = _nobody_looks

    async def begin(self) -> None:
        """Lists what the YAML says: no engine serves before it has it."""
        for adapter in self._wanted.values():
            await self._list(replace(adapter, created_s=int(self._runtime.wall_s())))

    def recall(self) -> None:
        """Those that are listed are there to be, whatever the YAML says: an earlier controller has brought them."""
        listed = {adapter_in(key): adapter for key, adapter in self._registry.adapters.items()}
        self._wanted = {name: replace(a, name=name) for (group, name), a in listed.items() if group == self._group}

    async def bring(self, live: LiveEngine) -> None:
        """Returns when the engine has all adapters; from now on it gets what comes. Raises StartError."""
        if self._model is None:
            return
        self._up[live.life] = live
        has = await self._there(live)
        while has != self._wanted.keys():
            for name in sorted(has ^ self._wanted.keys()):
                adapter = self._wanted.get(name)  # each time: what is wanted changes meanwhile
                if adapter is None:
                    await self._ask(live, UnloadAdapter(name))
                    has.discard(name)
                    continue
                error = await self._ask(live, _load_of(adapter))
                if error and self._wanted.get(name) is adapter:
                    what = f"adapter '{name}' cannot be loaded from {adapter.path}: {error}"
                    raise StartError(live.life, what, "mend its folder on that node, or unload it")
                has.add(name)

    def leave(self, life: str) -> None:
        """That incarnation is over."""
        self._up.pop(life, None)

    async def _there(self, live: LiveEngine) -> set[str]:
        """An engine that an earlier controller has started has some."""
        try:
            return set(await live.client.adapters())
        except (LegLost, TimeoutError):
            return set()  # whoever watches the engine will tell more

    async def load(self, name: str, path: str, pinned: bool) -> str | None:
        """Returns when every engine has it and every frontend lists it: None, or why it is nowhere."""
        return await self._whole(lambda: self._load(name, path, pinned))

    async def unload(self, name: str) -> str | None:
        """Returns when it is gone: None, or why not. New requests are refused at once; those that run may end."""
        return await self._whole(lambda: self._unload(name))

    async def stop(self) -> None:
        for task in self._changes:
            task.cancel()
        await asyncio.gather(*self._changes, return_exceptions=True)

    async def end(self) -> None:
        """Its model goes: nobody has them any more."""
        await self.stop()
        for name in self._wanted:
            await self._registry.remove_adapter(adapter_key(self._group, name))

    async def _whole(self, change: Callable[[], Awaitable[str | None]]) -> str | None:
        """Who asked may leave: what has begun is done to its end."""
        if len(self._changes) >= CHANGES_MAX:
            return f"{len(self._changes)} changes of adapters wait already; try again later"

        async def run() -> str | None:
            return await change()

        task = asyncio.create_task(run(), name="change of an adapter")
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)

    async def _load(self, name: str, path: str, pinned: bool) -> str | None:
        async with self._one_at_a_time:
            if why := self._why_not(name, path):
                return why
            adapter = Adapter(name, path, pinned, int(self._runtime.wall_s()))
            self._wanted[name] = adapter
            failures = await self._on_all(_load_of(adapter))
            if failures:
                del self._wanted[name]
                left = await self._on_all(UnloadAdapter(name))
                more = f"; it may still be on {', '.join(left)}" if left else ""
                return f"adapter '{name}' is loaded nowhere: {_told(failures)}{more}"
            await self._list(adapter)
            await self._seen()
            log.info("adapter %s is loaded from %s on %d engines", name, path, len(self._up))
            return None

    async def _unload(self, name: str) -> str | None:
        adapter = self._registry.adapters.get(adapter_key(self._group, name))
        if adapter is None:
            return f"there is no adapter '{name[:100]}' here"
        if adapter.is_leaving:
            return f"adapter '{name}' is being unloaded already"
        await self._list(replace(adapter, name=name, is_leaving=True))
        await self._seen()
        if not await self._is_quiet_within(name, min(self._drain_s, WAITS_MAX_S)):
            log.warning("adapter %s: requests still run with it, and are ended", name)
        async with self._one_at_a_time:
            self._wanted.pop(name, None)
            failures = await self._on_all(UnloadAdapter(name))
            await self._registry.remove_adapter(adapter_key(self._group, name))
            await self._seen()
        if failures:
            return f"nobody may name adapter '{name}' any more, and its memory is not free: {_told(failures)}"
        log.info("adapter %s is unloaded", name)
        return None

    async def _list(self, adapter: Adapter) -> None:
        await self._registry.put_adapter(replace(adapter, name=adapter_key(self._group, adapter.name)))

    def _why_not(self, name: str, path: str) -> str | None:
        if self._model is None:
            return "this deployment takes no adapters; an operator would say model.lora"
        if problem := problem_of_name(name, self._model):
            return f"the name '{name[:100]}' {problem}"
        if not PurePosixPath(path).is_absolute() or "\0" in path or len(path.encode()) > PATH_BYTES_MAX:
            return "the path must be that of a folder on the engines' nodes, from '/' on"
        if (there := self._wanted.get(name)) is not None:
            return f"adapter '{name}' is here already, from {there.path}; unload it first"
        is_full = len(self._wanted) >= ADAPTERS_MAX
        return f"{ADAPTERS_MAX} adapters are here, the most there may be" if is_full else None

    async def _on_all(self, change: LoadAdapter | UnloadAdapter) -> dict[str, str]:
        """Engine id -> why it failed there, where it did."""
        up = list(self._up.values())
        errors = await asyncio.gather(*(self._ask(live, change) for live in up))
        return {live.record.id: error for live, error in zip(up, errors, strict=True) if error}

    async def _ask(self, live: LiveEngine, change: LoadAdapter | UnloadAdapter) -> str:
        try:
            return await live.client.change_adapter(change, CHANGE_S)
        except TimeoutError:
            return f"no answer within {CHANGE_S:g} s"
        except LegLost as error:  # one that is gone holds nothing
            return "" if isinstance(change, UnloadAdapter) else f"the connection to it was lost ({error.what})"

    async def _is_quiet_within(self, name: str, limit_s: float) -> bool:
        now_s = self._runtime.now_s
        began_s = quiet_since_s = now_s()
        while now_s() - began_s < limit_s:
            asked = (live.client.adapters() for live in self._up.values())
            counts = await asyncio.gather(*asked, return_exceptions=True)
            if any(isinstance(legs, dict) and legs.get(name) for legs in counts):
                quiet_since_s = now_s()
            elif now_s() - quiet_since_s >= QUIET_S:
                return True
            await asyncio.sleep(POLL_S)
        return False

    async def _seen(self) -> None:
        if not await self.all_have_seen(SEEN_S):
            log.warning("some frontend has not taken in the change of an adapter within %g s", SEEN_S)


class AdaptersOfModels:
    """`by_group`: each model's. `models`: their names in the same order, which no adapter of any may have. Adapters are
    named as in the registry."""

    def __init__(self, by_group: Mapping[str, Adapters], models: Collection[str] = ()) -> None:
        self._by_group, self._models = dict(by_group), dict(zip(by_group, models, strict=False))
        self._all_have_seen: Callable[[float], Awaitable[bool]] = _nobody_looks

    def seen_by(self, all_have_seen: Callable[[float], Awaitable[bool]]) -> None:
        self._all_have_seen = all_have_seen
        for adapters in self._by_group.values():
            adapters.all_have_seen = all_have_seen

    def add(self, group: str, model: str, adapters: Adapters) -> None:
        """Of one more model, before its engines come, or in the place of another's."""
        adapters.all_have_seen = self._all_have_seen
        self._by_group[group], self._models[group] = adapters, model

    async def remove(self, group: str) -> None:
        """Its engines are gone."""
        self._models.pop(group, None)
        if (adapters := self._by_group.pop(group, None)) is not None:
            await adapters.end()

    async def begin(self) -> None:
        for adapters in self._by_group.values():
            await adapters.begin()

    def recall(self) -> None:
        for adapters in self._by_group.values():
            adapters.recall()

    async def bring(self, live: LiveEngine) -> None:
        adapters = self._by_group.get(live.record.group)
        if adapters is not None:  # else an earlier controller has started it, and nothing more of its model is known
            await adapters.bring(live)

    def leave(self, life: str) -> None:
        if (adapters := self._by_group.get(group_of(life))) is not None:
            adapters.leave(life)

    async def load(self, key: str, path: str, pinned: bool) -> str | None:
        group, name = self._place(key)
        if name in self._models.values():
            return f"the name '{name[:100]}' is that of a model here"
        return await self._by_group[group].load(name, path, pinned) if group in self._by_group else _NO_MODEL

    async def unload(self, key: str) -> str | None:
        group, name = self._place(key)
        return await self._by_group[group].unload(name) if group in self._by_group else _NO_MODEL

    async def stop(self) -> None:
        for adapters in self._by_group.values():
            await adapters.stop()

    def _place(self, key: str) -> tuple[str, str]:
        """Of the only model whatever stands there is the name, and refused by it."""
        return ("", key) if "" in self._by_group else adapter_in(key)


_NO_MODEL = "there is no such model here"


def _load_of(adapter: Adapter) -> LoadAdapter:
    return LoadAdapter(adapter.name, adapter.path, adapter.pinned)


def _told(failures: dict[str, str]) -> str:
    return "; ".join(f"{engine_id}: {error}" for engine_id, error in sorted(failures.items()))
