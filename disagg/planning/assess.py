"""All that can be told of a plan before it starts: places, memory, lanes; and what could not be looked at.

Way:   plan + described cluster + model facts -> [assess] -> report, for `disagg check` and `disagg serve --dry-run`
Out:   an Assessment: plain data, nothing is started and nothing connected to
Fails: never; the preflight reports what does not fit
"""

from __future__ import annotations

from dataclasses import dataclass

from disagg.errors import StartError
from disagg.models.facts import ModelFacts, find_facts
from disagg.planning.cluster_shape import ClusterShape
from disagg.planning.gpu_kinds import GpuKind
from disagg.planning.lanes import Lane, lanes_in_use, usual_lanes
from disagg.planning.memory import MemoryEstimate, estimate
from disagg.planning.placement import Placement, place
from disagg.planning.plan import EnginePlan, Plan, complete_arguments
from disagg.role_table import ROLES


@dataclass(frozen=True, slots=True)
class Assessment:
    plan: Plan
    shape: ClusterShape | None
    facts: ModelFacts | None
    placement: Placement
    memory: dict[str, MemoryEstimate]  # by engine, on the smallest of its GPUs
    lanes: dict[str, dict[Lane, int]]  # by the pool that sends: -> pairs of members at its ends; 0: no cluster is known
    unknown: tuple[str, ...]  # what was not checked, and why


def assess(plan: Plan, shape: ClusterShape | None = None) -> Assessment:
    facts: ModelFacts | None = None
    unknown: list[str] = []
    if plan.device != "simulated":
        try:
            facts = find_facts(plan.model.path, plan.model.revision)
        except StartError as error:  # SGLang may know better
            unknown.append(f"the model's shape: {error}")
        else:
            if facts is None:
                where = plan.deployment.at("model.path")
                unknown.append(f"{where} {plan.model.path} is not here, and not in disagg's table: no sizes")
    placement = Placement(())
    usual = dict.fromkeys(usual_lanes(plan.device) if facts else (), 0)
    lanes = {engine.pool: usual for engine in plan.engines if ROLES[engine.role].sends_kv_to}
    if shape is None:
        unknown.append("no cluster was looked at: no places, no GPUs' memory; say --assume-cluster FILE")
        if plan.deployment.device == "auto":
            unknown.append(f"device: auto is cuda on a cluster with GPUs; taken as {plan.device} here")
    else:
        placement, _ = place(plan, shape)  # what has no room is told by the preflight
        lanes = {pool: lanes_in_use(plan, pool, placement, shape) for pool in lanes}
    memory: dict[str, MemoryEstimate] = {}
    if facts:
        for engine in plan.engines:
            gpu = _smallest_gpu(engine, placement, shape)
            memory[engine.id] = estimate(complete_arguments(plan, engine), facts, gpu, engine.gpus or 1.0)
    return Assessment(plan, shape, facts, placement, memory, lanes, tuple(unknown))


def _smallest_gpu(engine: EnginePlan, placement: Placement, shape: ClusterShape | None) -> GpuKind | None:
    nodes = [shape.node(member.node) for member in placement.of(engine.id) if member.gpus] if shape else []
    return min((node.gpu for node in nodes if node.gpu), key=lambda gpu: gpu.memory_bytes, default=None)
