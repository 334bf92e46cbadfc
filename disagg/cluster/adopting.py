"""What a controller does with what an earlier one has left: all that was known is known again, and what serves goes on.

Way:   Controller.start -> [adopt] -> the registry, Changes, Models, AdaptersOfModels, Fleet, in this order
Fails: never for what has come or gone since: an engine of which too little is known is tried again and again
"""

from __future__ import annotations

from collections.abc import Iterable

from disagg.cluster.adapters import AdaptersOfModels
from disagg.cluster.change.keeper import Changes
from disagg.cluster.fleet import Fleet
from disagg.cluster.models import KeyAndSpec, Models
from disagg.cluster.notes import Earlier, NotedRegistry


async def adopt(
    earlier: Earlier,
    registry: NotedRegistry,
    changes: Changes,
    models: Models,
    adapters: AdaptersOfModels,
    fleet: Fleet,
    begun: Iterable[KeyAndSpec],
) -> None:
    """`begun`: the models of the deployment's start. Orders are heeded from now on where they were."""
    registry.recall(earlier)
    if earlier.changes is not None:
        changes.recall(earlier.changes)
    await models.recall(changes.plans_there, begun)
    adapters.recall()
    await fleet.adopt(earlier)
    if earlier.was_ready:
        changes.open()
