"""Which node, and which of its GPUs, each member of each engine will get.

Way:   plan + cluster shape -> [place] -> `disagg check`, preflight
Out:   the same answer for the same input. Ray's rule: a placement group an engine, the largest first; each member
       is one bundle, on a node of its own; a bundle goes to the node with the largest free shares left over
       Engines of other models are placed with those of the plan, and only these are told
Fails: never; an engine without a place is a Problem, and the next ones are placed all the same

Ray may pick another of several equal nodes than is shown here; whether all engines fit does not depend on that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from disagg.errors import Problem
from disagg.planning.cluster_shape import ClusterShape, NodeShape
from disagg.planning.plan import EnginePlan, Plan
from disagg.roles import Role

ROUNDING = 1e-4  # Ray counts in ten-thousandths


@dataclass(frozen=True, slots=True)
class PlacedMember:
    """The part of an engine on one node."""

    engine: str
    role: Role
    index: int
    node: str
    gpus: tuple[int, ...]  # indexes on the node
    ranks: tuple[int, ...]  # of the engine: pp_rank * tp_size + tp_rank


@dataclass(frozen=True, slots=True)
class Placement:
    members: tuple[PlacedMember, ...]
    beside: tuple[PlacedMember, ...] = ()  # of the other models' engines

    def of(self, engine: str) -> tuple[PlacedMember, ...]:
        return tuple(member for member in self.members if member.engine == engine)


def place(plan: Plan, shape: ClusterShape) -> tuple[Placement, list[Problem]]:
    nodes = [_Free(node) for node in shape.nodes]
    own = {engine.id for engine in plan.engines}
    members: list[PlacedMember] = []
    problems: list[Problem] = []
    for engine in plan.largest_first():
        chosen = _choose(engine, nodes)
        if chosen is None:
            problems += [_no_place(plan, engine, nodes)] if engine.id in own else []
            continue
        ranks = engine.ranks // engine.nodes
        for index, node in enumerate(chosen):
            of_member = tuple(range(index * ranks, (index + 1) * ranks))
            members.append(PlacedMember(engine.id, engine.role, index, node.name, node.allot(engine), of_member))
    mine, others = (tuple(each for each in members if (each.engine in own) is is_own) for is_own in (True, False))
    return Placement(mine, others), problems


class _Free:
    """What is left of a node."""

    def __init__(self, node: NodeShape) -> None:
        self.name, self.cpus, self.gpus = node.name, node.cpus, [1.0] * node.gpus

    def has_room(self, engine: EnginePlan) -> bool:
        return self.cpus + ROUNDING >= engine.cpus and self._gpus_for(engine.gpus) is not None

    def score(self, engine: EnginePlan) -> float:
        """Ray's: for each resource asked for, the share of what is free that stays free."""
        asked = ((engine.cpus, self.cpus), (engine.gpus, sum(self.gpus)))
        return sum((free - wanted) / free for wanted, free in asked if wanted and free)

    def allot(self, engine: EnginePlan) -> tuple[int, ...]:
        gpus = self._gpus_for(engine.gpus) or ()
        self.cpus -= engine.cpus
        for gpu in gpus:
            self.gpus[gpu] -= min(1.0, engine.gpus)
        return gpus

    def _gpus_for(self, wanted: float) -> tuple[int, ...] | None:
        """Whole GPUs from the first on; a part of one where it leaves the least over."""
        if not wanted:
            return ()
        if wanted < 1:
            fitting = [(free, index) for index, free in enumerate(self.gpus) if free + ROUNDING >= wanted]
            return (min(fitting)[1],) if fitting else None
        whole = [index for index, free in enumerate(self.gpus) if free > 1 - ROUNDING]
        return tuple(whole[: int(wanted)]) if len(whole) >= wanted else None

    def __str__(self) -> str:
        return f"{self.name} {_amount(self.cpus, 'CPU')}" + (f" {_amount(sum(self.gpus), 'GPU')}" if self.gpus else "")


def _choose(engine: EnginePlan, nodes: list[_Free]) -> list[_Free] | None:
    with_room = [node for node in nodes if node.has_room(engine)]
    best = sorted(with_room, key=lambda node: -node.score(engine))  # stable: the first of equals
    return best[: engine.nodes] if len(best) >= engine.nodes else None


def _no_place(plan: Plan, engine: EnginePlan, nodes: list[_Free]) -> Problem:
    path = plan.deployment.path_of(engine.role, engine.pool_index)
    needs = " and ".join(_needs(engine))
    each = f" on each of {engine.nodes} nodes" if engine.nodes > 1 else " on one node"
    fit = sum(node.has_room(engine) for node in nodes)
    most = sorted(nodes, key=lambda node: (-sum(node.gpus), -node.cpus))[:3]
    free = ", ".join(map(str, most)) + (", …" if len(nodes) > len(most) else "")
    what = f"{engine.id} needs {needs}{each}, and {fit or 'none'} of {len(nodes)} has room (free: {free})"
    return Problem(path, what, "take fewer replicas, a smaller engine or more nodes, or a larger cluster")


def _needs(engine: EnginePlan) -> Iterator[str]:
    if engine.gpus:
        yield _amount(engine.gpus, "GPU")
    if engine.cpus or not engine.gpus:
        yield _amount(engine.cpus, "CPU")


def _amount(number: float, unit: str) -> str:
    return f"{round(number, 4):g} {unit}"
