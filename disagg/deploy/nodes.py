"""How many nodes a plan needs, and with how many GPUs and CPUs each: its engines' members, packed.

Way:   Plan -> [pack] -> groups of equal nodes -> KubeRay worker groups, sbatch's --nodes
In:    what a node has at most. Where members go is Ray's to say (disagg/planning/placement.py)
Out:   the least that holds the members where Ray puts them, not what the nodes have
Fails: problems by YAML path, for members that no node holds
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from disagg.errors import Problem
from disagg.planning.cluster_shape import ClusterShape, NodeShape
from disagg.planning.placement import ROUNDING, Placement, place
from disagg.planning.plan import Plan


@dataclass(frozen=True, slots=True)
class NodeGroup:
    """`count` nodes, each of which has to offer this much."""

    gpus: int
    cpus: int
    count: int
    engines: tuple[str, ...]  # which ids have a member here


def pack(plan: Plan, gpus_per_node: int, cpus_per_node: int | None) -> tuple[NodeGroup, ...]:
    """As few nodes as Ray finds room on, each with what it then has to offer; more, all alike, where Ray would place
    the engines otherwise on such smaller nodes. Call it with a plan that `unfit` has nothing against."""
    cpus_all = sum(engine.cpus * engine.nodes for engine in plan.engines)
    gpus_all = sum(engine.gpus * engine.nodes for engine in plan.engines)
    cpus = cpus_per_node if cpus_per_node is not None else max(1, math.ceil(cpus_all))
    count = max(1, math.ceil(cpus_all / cpus - ROUNDING), math.ceil(gpus_all / max(1, gpus_per_node) - ROUNDING))
    while (placement := _placed([NodeGroup(gpus_per_node, cpus, count, ())], plan)) is None:
        count += 1
    groups = _groups(plan, placement)
    gpus, cpus = max(group.gpus for group in groups), max(group.cpus for group in groups)
    # A batch scheduler's nodes are all as the largest: places have to be found on such ones, too.
    if _placed(groups, plan) and _placed([NodeGroup(gpus, cpus, count, ())], plan):
        return groups
    while _placed([NodeGroup(gpus, cpus, count, ())], plan) is None:
        count += 1
    return (NodeGroup(gpus, cpus, count, tuple(engine.id for engine in plan.engines)),)


def unfit(plan: Plan, gpus_per_node: int, cpus_per_node: int | None) -> Iterator[Problem]:
    for role, index, pool in plan.deployment.pools():
        path = plan.deployment.path_of(role, index)
        engine = next(each for each in plan.of_role(role) if each.pool_index == index)
        if engine.gpus > gpus_per_node:
            what = f"an engine wants {engine.gpus:g} GPUs on each of its {pool.nodes} node(s), and a node has"
            would_do = "spread the engine with the pool's nodes, or say what a node has with --gpus-per-node"
            yield Problem(path, f"{what} {gpus_per_node}", would_do)
        if cpus_per_node is not None and engine.cpus > cpus_per_node:
            what = f"is {engine.cpus:g}, and a node has {cpus_per_node}"
            yield Problem(f"{path}.resources.cpus", what, "lower it, or say what a node has with --cpus-per-node")


def _placed(groups: Iterable[NodeGroup], plan: Plan) -> Placement | None:
    """Where Ray places all members on these nodes; None where not all of them find room."""
    nodes = (
        NodeShape(f"{group_index}-{index}", cpus=group.cpus, gpus=group.gpus)
        for group_index, group in enumerate(groups)
        for index in range(group.count)
    )
    placement, problems = place(plan, ClusterShape("the packed nodes", tuple(nodes)))
    return None if problems else placement


def _groups(plan: Plan, placement: Placement) -> tuple[NodeGroup, ...]:
    """Nodes of which as much is used, the largest first."""
    engines = {engine.id: engine for engine in plan.engines}
    by_size: dict[tuple[int, int], list[set[str]]] = {}
    for node in dict.fromkeys(member.node for member in placement.members):
        here = [member for member in placement.members if member.node == node]
        gpus = len({gpu for member in here for gpu in member.gpus})
        cpus = max(1, math.ceil(sum(engines[member.engine].cpus for member in here) - ROUNDING))
        by_size.setdefault((gpus, cpus), []).append({member.engine for member in here})
    return tuple(
        NodeGroup(gpus, cpus, len(nodes), tuple(name for name in engines if name in set().union(*nodes)))
        for (gpus, cpus), nodes in sorted(by_size.items(), reverse=True)
    )
