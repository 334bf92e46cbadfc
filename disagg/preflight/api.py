"""Three ways to run the preflight: over a file's text, over a plan, over a plan and the nodes it will run on.

Way:   load -> [check_text]; `disagg check` and `disagg serve` -> [check] -> Problems, or nothing and it may start
In:    as much as is known. The more, the more rules can tell
Fails: never; problems come back, all at once
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from disagg.config.rules import PoolText, texts_of
from disagg.planning.cluster_shape import ClusterShape
from disagg.planning.placement import place
from disagg.preflight.all_rules import RULES, problems, warnings
from disagg.preflight.node_facts import MeasuredLane, NodeFacts, described
from disagg.preflight.subject import Subject, pool_views
from disagg.role_table import ROLES

if TYPE_CHECKING:
    from disagg.errors import Problem
    from disagg.models.facts import ModelFacts
    from disagg.planning.plan import Plan


def check_text(tree: dict[str, Any], pools: list[PoolText]) -> list[Problem]:
    """Problems of the file's own text, whatever else is wrong with it. `pools`: as engine_arguments.as_meant gives
    them."""
    device = str(tree.get("device", "auto"))
    return problems(Subject(pool_views(pools, device), device, settings=tree), RULES)


def check(
    plan: Plan,
    cluster: ClusterShape | Sequence[NodeFacts] | None = None,
    facts: ModelFacts | None = None,
    lanes: Sequence[MeasuredLane] = (),
) -> list[Problem]:
    """`cluster`: described, or as probes saw it; None: not known, and its rules rest."""
    found = problems(subject_of(plan, cluster, facts, lanes), RULES)
    return [replace(problem, path=plan.deployment.at(problem.path)) for problem in found]


def check_warnings(
    plan: Plan, cluster: ClusterShape | Sequence[NodeFacts] | None = None, facts: ModelFacts | None = None
) -> list[str]:
    """Each begins with the path that it is about, if it is about one."""
    return [plan.deployment.at(text) for text in warnings(subject_of(plan, cluster, facts))]


def subject_of(
    plan: Plan,
    cluster: ClusterShape | Sequence[NodeFacts] | None,
    facts: ModelFacts | None,
    lanes: Sequence[MeasuredLane] = (),
) -> Subject:
    deployment = plan.deployment
    nodes = described(cluster) if isinstance(cluster, ClusterShape) else tuple(cluster or ())
    shape = cluster if isinstance(cluster, ClusterShape) else ClusterShape("the cluster", tuple(n.shape for n in nodes))
    placement, unplaced = place(plan, shape) if nodes else (None, [])
    return Subject(
        pools=pool_views(texts_of(deployment), plan.device, plan.engines),
        device=plan.device,
        model=facts,
        nodes=nodes,
        members=placement.members if placement else (),
        beside=placement.beside if placement else (),
        unplaced=tuple(unplaced),
        lanes=tuple(lanes),
        settings=deployment.model_dump(exclude={role.value for role in ROLES}),
    )
