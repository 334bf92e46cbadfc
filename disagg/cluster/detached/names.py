"""Names of what outlives its maker in a Ray cluster, by which the next controller finds it.

Way:   RayPlaces, RayNode, NodeAgents, the command -> [Names] =Ray=> named actors and placement groups
In:    a deployment's name; its Ray namespace is the deployment's own, so that the two together are one deployment
Owns:  how names are made: disagg/DEPLOYMENT/kind/…/token. Only the controller has none: there is one
"""

from __future__ import annotations

import secrets
from typing import Any

import ray
from ray.util import list_named_actors, placement_group_table
from ray.util.placement_group import get_placement_group, remove_placement_group

ROOT = "disagg"
CONTROLLER, FRONTENDS, AGENT, ENGINE, PLACE = "controller", "frontends", "agent", "engine", "place"


class Names:
    def __init__(self, deployment: str) -> None:
        self._prefix = f"{ROOT}/{deployment}/"
        self._in_use: set[str] = set()  # of what another controller has left

    @property
    def controller(self) -> str:
        return f"{self._prefix}{CONTROLLER}"

    def place(self, token: str) -> str:
        """Of a placement group. Ray lists those of all its namespaces."""
        return f"{self._prefix}{PLACE}/{ray.get_runtime_context().namespace}/{token}"

    def options(self, *parts: str) -> dict[str, str]:
        """Of a new actor. An actor that is being killed may still have a name of the same parts."""
        return {"name": "/".join([self._prefix + parts[0], *parts[1:], secrets.token_hex(4)]), "lifetime": "detached"}

    def actors(self, *parts: str) -> list[str]:
        """Those that live, or are being started or restarted."""
        beginning = self._prefix + "/".join([*parts, ""])
        return [name for name in list_named_actors() if name.startswith(beginning)]

    def adopted(self, name: str) -> None:
        """Its owner is known again."""
        self._in_use.add(name)

    def end_strays(self, kind: str) -> None:
        """Kills the actors of this kind that nobody has adopted."""
        for name in self.actors(kind):
            if name not in self._in_use:
                kill(name)

    def release_all(self) -> None:
        """Gives back every placement group."""
        self._in_use.clear()
        self.release_strays()

    def release_strays(self) -> None:
        """Gives back placement groups that nobody has adopted."""
        for said in placement_group_table().values():
            name = said["name"]
            is_ours = name.startswith(self.place("")) and said["state"] != "REMOVED"
            if is_ours and name not in self._in_use:
                remove_placement_group(get_placement_group(name))


def kill(name: str) -> None:
    """For good; nothing where there is none."""
    if (actor := actor_of(name)) is not None:
        ray.kill(actor)


def actor_of(name: str) -> Any:
    """None: there is none of this name."""
    try:
        return ray.get_actor(name)
    except ValueError:
        return None
