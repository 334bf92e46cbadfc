"""How many nodes a plan needs, and with how many GPUs and CPUs each: its engines' members, packed.

Way:   Plan -> [pack] -> groups of equal nodes -> KubeRay worker groups, sbatch's --nodes
In:    what a node has at most. Members of one engine go to nodes of their own
Out:   the least that holds the members where Ray puts them, not what the nodes have
Fails: problems by YAML path, for members that no node holds
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from disagg.errors import Problem
from disagg.planning.cluster_shape import ClusterShape, NodeShape
from disagg.planning.placement import place
from disagg.planning.plan import EnginePlan, Plan

WHOLE = 1.0
ROUNDING = 1e-9  # three engines of 0.333 GPU and one of 0.001 fit


@dataclass(frozen=True, slots=True)
class NodeGroup:
    """`count` nodes, each of which has to offer this much."""

    gpus: int
    cpus: int
    count: int
    engines: tuple[str, ...]  # which ids have a member here


@dataclass(slots=True)
class _Node:
    gpus_free: list[float]
    cpus_free: float
    cpus_used: float = 0.0
    engines: list[str] = field(default_factory=list)


def pack(plan: Plan, gpus_per_node: int, cpus_per_node: int | None) -> tuple[NodeGroup, ...]:
    """The largest members first, each where it fits first; more nodes, all alike, where Ray would not find room on
    those. Call it with a plan that `unfit` has nothing against."""
    groups = _packed(plan, gpus_per_node, cpus_per_node)
    gpus, cpus = max(group.gpus for group in groups), max(group.cpus for group in groups)
    count = sum(group.count for group in groups)
    # A batch scheduler's nodes are all as the largest: places have to be found on such ones, too.
    if _holds(groups, plan) and _holds([NodeGroup(gpus, cpus, count, ())], plan):
        return groups
    while not _holds([NodeGroup(gpus, cpus, count, ())], plan):
        count += 1
    return (NodeGroup(gpus, cpus, count, tuple(engine.id for engine in plan.engines)),)


def unfit(plan: Plan, gpus_per_node: int, cpus_per_node: int | None) -> Iterator[Problem]:
    for role, index, pool in plan.deployment.pools():
        path = f"{role.value}.{index}" if len(plan.deployment.of_role(role)) > 1 else role.value
        engine = next(each for each in plan.of_role(role) if each.pool_index == index)
        if engine.gpus > gpus_per_node:
            what = f"an engine wants {engine.gpus:g} GPUs on each of its {pool.nodes} node(s), and a node has"
            would_do = "spread the engine with the pool's nodes, or say what a node has with --gpus-per-node"
            yield Problem(path, f"{what} {gpus_per_node}", would_do)
        if cpus_per_node is not None and engine.cpus > cpus_per_node:
            what = f"is {engine.cpus:g}, and a node has {cpus_per_node}"
            yield Problem(f"{path}.resources.cpus", what, "lower it, or say what a node has with --cpus-per-node")


def _holds(groups: Iterable[NodeGroup], plan: Plan) -> bool:
    """As Ray places: each member goes to the emptiest node."""
    nodes = (
        NodeShape(f"{group_index}-{index}", cpus=group.cpus, gpus=group.gpus)
        for group_index, group in enumerate(groups)
        for index in range(group.count)
    )
    _, problems = place(plan, ClusterShape("the packed nodes", tuple(nodes)))
    return not problems


def _packed(plan: Plan, gpus_per_node: int, cpus_per_node: int | None) -> tuple[NodeGroup, ...]:
    nodes: list[_Node] = []
    for engine in plan.largest_first():
        for _ in range(engine.nodes):
            _place(engine, nodes, gpus_per_node, math.inf if cpus_per_node is None else cpus_per_node)
    sizes: dict[tuple[int, int], list[_Node]] = {}
    for node in nodes:
        used = sum(free < WHOLE for free in node.gpus_free)
        sizes.setdefault((used, max(1, math.ceil(node.cpus_used - ROUNDING))), []).append(node)
    order = [engine.id for engine in plan.engines]
    return tuple(
        NodeGroup(gpus, cpus, len(equal), tuple(name for name in order if any(name in node.engines for node in equal)))
        for (gpus, cpus), equal in sorted(sizes.items(), reverse=True)
    )


def _place(engine: EnginePlan, nodes: list[_Node], gpus_per_node: int, cpus_per_node: float) -> None:
    for node in nodes:
        if engine.id not in node.engines and _take(engine, node):
            return
    fresh = _Node([WHOLE] * gpus_per_node, cpus_per_node)
    if not _take(engine, fresh):
        raise AssertionError(f"{engine.id} fits no node; unfit() says so")
    nodes.append(fresh)


def _take(engine: EnginePlan, node: _Node) -> bool:
    """As Ray gives GPUs: several are whole ones, a part is of one."""
    if engine.cpus > node.cpus_free + ROUNDING:
        return False
    if 0 < engine.gpus < WHOLE:
        wanted = [i for i, free in enumerate(node.gpus_free) if free >= engine.gpus - ROUNDING]
        # A GPU that is shared already before an untouched one.
        chosen = sorted(wanted, key=lambda i: node.gpus_free[i])[:1]
    else:
        chosen = [i for i, free in enumerate(node.gpus_free) if free == WHOLE][: int(engine.gpus)]
    if len(chosen) < math.ceil(engine.gpus):
        return False
    for i in chosen:
        node.gpus_free[i] -= min(engine.gpus, WHOLE)
    node.cpus_free -= engine.cpus
    node.cpus_used += engine.cpus
    node.engines.append(engine.id)
    return True
