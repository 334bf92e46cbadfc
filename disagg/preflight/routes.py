"""Which ways of the KV are measured: from each node that sends some to each that takes it, as engines will be placed.

Way:   placed members -> [routes] -> probe, which measures them one after the other
Out:   ROUTES_MAX at most; each node is on one of them, while there are that many
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import NamedTuple

from disagg.planning.placement import Member
from disagg.role_table import ROLES

ROUTES_MAX = 32  # a measurement takes a second or two


class Place(NamedTuple):
    node: str
    gpu: int | None  # None: memory of the host


class Route(NamedTuple):
    source: Place
    target: Place


def routes(members: Iterable[Member], *, on_gpus: bool) -> list[Route]:
    members = list(members)
    sources = _places((each for each in members if ROLES[each.role].sends_kv_to), on_gpus=on_gpus)
    targets = _places((each for each in members if ROLES[each.role].takes_kv_from), on_gpus=on_gpus)
    if not sources or not targets:
        return []
    nodes, others = list(sources), list(targets)
    every_node = ((nodes[i % len(nodes)], others[i % len(others)]) for i in range(max(len(nodes), len(others))))
    pairs = list(dict.fromkeys([*every_node, *product(nodes, others)]))[:ROUTES_MAX]
    return [_apart(sources[source], targets[target]) for source, target in pairs]


def _places(members: Iterable[Member], *, on_gpus: bool) -> dict[str, list[Place]]:
    places: dict[str, list[Place]] = {}
    for member in members:
        gpus = member.gpus if on_gpus else (None,)
        places.setdefault(member.node, []).extend(Place(member.node, gpu) for gpu in gpus)
    return places


def _apart(sources: list[Place], targets: list[Place]) -> Route:
    """Two GPUs, where the roles have two: one to itself says nothing of the way between two."""
    pairs = [Route(source, target) for source, target in product(sources, targets)]
    return next((route for route in pairs if route.source != route.target), pairs[0])
