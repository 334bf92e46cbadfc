"""Chooses between which nodes KV transfers are measured: from nodes that send KV to nodes that take it, as placed.

Way:   placed members -> [routes] -> disagg/cluster/cluster_inspect.py, which measures them one after the other
Out:   ROUTES_MAX at most, chosen so that each node is on one of them as far as that number allows
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import NamedTuple

from disagg.planning.placement import PlacedMember
from disagg.role_table import ROLES

ROUTES_MAX = 32  # a measurement takes a second or two


class Place(NamedTuple):
    node: str
    gpu: int | None  # None: memory of the host


class KvRoute(NamedTuple):
    source: Place
    target: Place


def routes(members: Iterable[PlacedMember], *, on_gpus: bool) -> list[KvRoute]:
    members = list(members)
    sources = _places((each for each in members if ROLES[each.role].sends_kv_to), on_gpus=on_gpus)
    targets = _places((each for each in members if ROLES[each.role].takes_kv_from), on_gpus=on_gpus)
    if not sources or not targets:
        return []
    nodes, others = list(sources), list(targets)
    every_node = ((nodes[i % len(nodes)], others[i % len(others)]) for i in range(max(len(nodes), len(others))))
    pairs = list(dict.fromkeys([*every_node, *product(nodes, others)]))[:ROUTES_MAX]
    return [_apart(sources[source], targets[target]) for source, target in pairs]


def _places(members: Iterable[PlacedMember], *, on_gpus: bool) -> dict[str, list[Place]]:
    places: dict[str, list[Place]] = {}
    for member in members:
        gpus = member.gpus if on_gpus else (None,)
        places.setdefault(member.node, []).extend(Place(member.node, gpu) for gpu in gpus)
    return places


def _apart(sources: list[Place], targets: list[Place]) -> KvRoute:
    """Two different GPUs where the roles have two: a transfer within one GPU shows nothing of the lane between two."""
    pairs = [KvRoute(source, target) for source, target in product(sources, targets)]
    return next((route for route in pairs if route.source != route.target), pairs[0])
