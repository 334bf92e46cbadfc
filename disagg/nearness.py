"""What two engines share: a GPU, a node, an NVLink domain, a rail, a rack. The nearer they are, the quicker KV goes.

Way:   fleet's supervisor -> [place_of] -> EngineRecord.place -> frontends: [names_of] -> [shared], of a way between two
In:    addresses of an engine's nodes; labels of nodes, found by the preflight or said by an operator
Owns:  the kinds of places, the nearest first
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

GPU, NODE, NVLINK, RAIL, RACK = KINDS = ("gpu", "node", "nvlink", "rail", "rack")
LABELS = (NVLINK, RAIL, RACK)  # what is said of a node
ELSEWHERE = ""  # what two share that share none

Names = tuple[str, ...]  # "rack r1", the nearest kind first


def place_of(nodes: Sequence[str], devices: str, labels: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """By kind, of an engine on these nodes, by their addresses; of one over several what all of them share.

    `devices`: CUDA_VISIBLE_DEVICES of the engine, on its node. `labels`: of nodes, by address.
    """
    first, *others = [dict(labels.get(node, {})) for node in nodes]
    place = {kind: name for kind, name in first.items() if all(other.get(kind) == name for other in others)}
    if not others:
        place[NODE] = nodes[0]
        if devices:
            place[GPU] = f"{nodes[0]}/{devices}"
    return place


def names_of(place: Mapping[str, str]) -> Names:
    return tuple(f"{kind} {place[kind]}" for kind in KINDS if kind in place)


def shared(one: Names, other: Names) -> str:
    """The nearest kind of place that both are in."""
    for name in one:
        if name in other:
            return name.partition(" ")[0]
    return ELSEWHERE
