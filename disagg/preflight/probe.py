"""Asks every node of the connected Ray cluster what it is and has, and how KV gets from one node to another.

Way:   `disagg serve`, `disagg check` on a cluster -> [see: look_at_nodes, measure_lanes, check] -> refused, or not
Out:   facts of every node that is alive, in order of its name
Fails: ConfigError with every problem; StartError when a node does not answer within its limit
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from disagg.errors import ConfigError, Problem, StartError
from disagg.models.facts import find_facts
from disagg.preflight.doors import check, check_warnings
from disagg.preflight.lane_probe import LaneEnd
from disagg.preflight.look import look
from disagg.preflight.nodes import MeasuredLane, NodeFacts

if TYPE_CHECKING:
    from disagg.config.plan import Plan

LOOK_LIMIT_S = 60.0  # a worker of Ray's may have to start first, and a model lie on a slow mount
DEEP_LIMIT_S = 3600.0
LANE_LIMIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What was found on the cluster, and what follows from it for a plan."""

    nodes: list[NodeFacts]
    lanes: list[MeasuredLane]
    problems: list[Problem]
    warnings: list[str]


async def refuse(plan: Plan, model_folder: str) -> list[str]:
    """What `disagg serve` asks before it starts anything: ConfigError with all that would fail later, or warnings."""
    seen = await see(plan, model_folder)
    if seen.problems:
        raise ConfigError("preflight", tuple(seen.problems))
    return seen.warnings


async def see(plan: Plan, model_folder: str, *, lanes: bool | None = None, deep: bool = False) -> Seen:
    """Ray is connected. `lanes`: measure them; None: where there is more than one node, and nothing is wrong with them.

    `deep`: every node reads all bytes of its copy of the model.
    """
    is_real = plan.device != "simulated"
    doubts: list[str] = []
    try:
        facts = find_facts(model_folder) if is_real else None
    except StartError as error:  # SGLang may know better
        facts, doubts = None, [f"nothing was checked against the model's shape: {error}"]
    nodes = await look_at_nodes(model_folder if is_real else "", ports=(plan.frontend.port,), deep=deep)
    problems, measured = check(plan, nodes, facts), []
    if is_real and (len(nodes) > 1 and not problems if lanes is None else lanes):
        measured = await measure_lanes(nodes, on_gpus=plan.device == "cuda")
        problems = check(plan, nodes, facts, measured)
    return Seen(nodes, measured, problems, doubts + check_warnings(plan, facts))


async def look_at_nodes(folder: str = "", *, ports: Iterable[int] = (), deep: bool = False) -> list[NodeFacts]:
    """`ports` are those of this process's own node."""
    here = ray.get_runtime_context().get_node_id()
    looks = []
    for name, node in _alive().items():
        given, node_id = node["Resources"], node["NodeID"]
        own = tuple(ports) if node_id == here else ()
        task = ray.remote(look).options(num_cpus=0, scheduling_strategy=_on(node_id))
        looks.append(task.remote(name, given.get("CPU", 0.0), int(given.get("GPU", 0)), folder, own, deep))
    facts: list[NodeFacts] = await _within(asyncio.gather(*looks), DEEP_LIMIT_S if deep else LOOK_LIMIT_S, "the nodes")
    return facts


async def measure_lanes(nodes: Sequence[NodeFacts], *, on_gpus: bool) -> list[MeasuredLane]:
    """Each node to the next, the last to the first: N measurements, not N * N. The ends start all at once, which takes
    seconds; then they are measured one after the other, which takes less."""
    ids = {name: node["NodeID"] for name, node in _alive().items()}
    names = [node.name for node in nodes if node.shape.gpus or not on_gpus]
    if not names:
        return []
    places = [*names, names[0]] if len(names) == 1 else names  # a node to itself: from its first GPU to its second
    ends = [
        ray.remote(LaneEnd)
        .options(num_cpus=0, scheduling_strategy=_on(ids[name]))
        .remote((index if len(names) == 1 else 0) if on_gpus else None)
        for index, name in enumerate(places)
    ]
    try:
        offers = await _within(asyncio.gather(*(end.offer.remote() for end in ends)), LANE_LIMIT_S, "the lanes' ends")
        lanes = []
        for index, name in enumerate(names):
            to = (index + 1) % len(places)
            written = ends[index].write_to.remote(offers[to])
            transport, gbyte_s = await _within(written, LANE_LIMIT_S, f"{name}, writing to {places[to]}")
            lanes.append(MeasuredLane(name, places[to], transport, gbyte_s))
        return lanes
    finally:
        for end in ends:
            ray.kill(end, no_restart=True)  # its process ends with its pipe


def _alive() -> dict[str, dict[str, Any]]:
    """By name. Nodes whose names are the same, as in tests on one machine, go by their addresses and ids too."""
    nodes = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: str(node["NodeManagerAddress"]))
    names = [str(node["NodeManagerHostname"]) for node in nodes]
    return {
        name if names.count(name) == 1 else f"{name}-{node['NodeID'][:8]}": node
        for name, node in zip(names, nodes, strict=True)
    }


def _on(node_id: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node_id, soft=False)


async def _within(asked: Any, limit_s: float, who: str) -> Any:
    try:
        async with asyncio.timeout(limit_s):
            return await asked
    except TimeoutError:
        raise StartError("preflight", f"no answer from {who} within {limit_s:g} s", "see `ray status`") from None
    except ray.exceptions.RayError as error:
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise StartError("preflight", f"{who}: {last}", "see Ray's logs there") from error
