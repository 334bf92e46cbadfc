"""What a fleet needs of a cluster: room for an engine, and a way to run it there. Ray's is in ray_places.py.

Way:   fleet -> [Places.ask] -> a Place with the engine's node -> supervisor
"""

from __future__ import annotations

from typing import Protocol

from disagg.cluster.engine_node import EngineNode
from disagg.planning.plan import EnginePlan


class Place(Protocol):
    """One engine's share of the cluster, asked for and perhaps not granted yet."""

    @property
    def node(self) -> EngineNode: ...

    @property
    def name(self) -> str:
        """By which another controller asks for it again."""

    async def granted(self) -> None:
        """Returns once the cluster has set it aside; may never."""

    def release(self) -> None:
        """Gives it back, whatever runs there."""

    def handed_on(self, plan: EnginePlan) -> Place:
        """The same share for another engine that needs as much. Nothing runs there any more; this one is over."""


class Places(Protocol):
    def ask(self, plan: EnginePlan) -> Place: ...

    def again(self, plan: EnginePlan, name: str) -> Place:
        """The place that an earlier controller had, if it is there still; else another one."""

    def end_strays(self) -> None:
        """Ends what an earlier controller has left and nobody has adopted, and gives its places back."""

    def left(self) -> str:
        """What the cluster has, for people."""
