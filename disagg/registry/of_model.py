"""What a deployment of several models looks like to who serves one of them: its engines and its adapters alone.

Way:   Follower's watch -> [of_model] -> Connections of that model
In:    views of the whole table; out: the same of one model, its adapters by the names that clients say. With one model
       alone a view passes as it is
Cost:  O(table) at each change, in deployments of several models
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import TypeVar

from msgspec.structs import replace

from disagg.adapters import Adapter
from disagg.lives import adapter_in, group_of
from disagg.registry.changes import Changes
from disagg.registry.table import View

T = TypeVar("T")


async def of_model(views: AsyncIterator[View], group: str) -> AsyncIterator[View]:
    """`group`: of several models; empty: of the only one."""
    async for view in views:
        yield _of(view, group) if group else view


def _of(view: View, group: str) -> View:
    changes = Changes(
        view.changes.revision,
        {pair: have_met for pair, have_met in view.changes.met.items() if group_of(pair[0]) == group},
        _engines(view.changes.records, group),
        _adapters(view.changes.adapters, group),
        view.changes.frontends,
    )
    adapters = {name: adapter for name, adapter in _adapters(view.adapters, group).items() if adapter is not None}
    return View(_engines(view.records, group), view.met, changes, adapters)


def _engines(by_id: Mapping[str, T], group: str) -> dict[str, T]:
    return {engine_id: record for engine_id, record in by_id.items() if group_of(engine_id) == group}


def _adapters(by_key: Mapping[str, Adapter] | Mapping[str, Adapter | None], group: str) -> dict[str, Adapter | None]:
    found: dict[str, Adapter | None] = {}
    for key, adapter in by_key.items():
        of, name = adapter_in(key)
        if of == group:
            found[name] = None if adapter is None else replace(adapter, name=name)
    return found
