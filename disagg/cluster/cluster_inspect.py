"""Asks every node of the connected Ray cluster what it is and has, and how KV gets from one node to another.

Way:   `disagg serve`, `disagg check` on a cluster -> [inspect_cluster: nodes, lanes, rules] -> refused, or not
Out:   facts of every node that is alive, in order of its name
Fails: ConfigError with every problem; StartError when a node does not answer within its limit
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from disagg.cluster import ray_cluster
from disagg.cluster.node_inspect import inspect_node
from disagg.errors import ConfigError, Problem, StartError
from disagg.models.facts import ModelFacts, find_facts
from disagg.preflight.api import check, check_warnings, subject_of
from disagg.preflight.kv_routes import KvRoute, Place, routes
from disagg.preflight.node_facts import MeasuredLane, NodeFacts
from transfer.lane_end import LaneEnd

if TYPE_CHECKING:
    from disagg.planning.gpu_kinds import GpuKind
    from disagg.planning.plan import Plan

INSPECT_LIMIT_S = 60.0  # a worker of Ray's may have to start first, and a model lie on a slow mount
DEEP_LIMIT_S = 3600.0
LANE_LIMIT_S = 120.0


@dataclass(frozen=True, slots=True)
class ClusterInspection:
    """What was found on the cluster, and what follows from it for a plan."""

    nodes: list[NodeFacts]
    lanes: list[MeasuredLane]
    problems: list[Problem]
    warnings: list[str]
    facts: ModelFacts | None = None

    @property
    def gpus(self) -> list[GpuKind]:
        return [node.shape.gpu for node in self.nodes if node.shape.gpu]

    @property
    def gbytes_s(self) -> list[float]:
        """Of the lanes."""
        return [lane.gbyte_s for lane in self.lanes]


async def refuse(plans: Sequence[Plan], model_folders: Sequence[str]) -> list[ClusterInspection]:
    """Called by `disagg serve` before it starts anything, with each model's. Raises ConfigError with all that would
    fail later."""
    seen = [await inspect_cluster(plan, folder) for plan, folder in zip(plans, model_folders, strict=True)]
    if problems := tuple(dict.fromkeys(problem for each in seen for problem in each.problems)):
        raise ConfigError("preflight", problems)
    return seen


async def inspect_cluster(
    plan: Plan, model_folder: str, *, lanes: bool | None = None, deep: bool = False
) -> ClusterInspection:
    """Ray is connected. `lanes`: measure them; None: measure those between two places, if nothing is wrong so far.

    `deep`: every node reads all bytes of its copy of the model.
    """
    is_real = plan.device != "simulated"
    doubts: list[str] = []
    try:
        facts = find_facts(model_folder) if is_real else None
    except StartError as error:  # SGLang may know better
        facts, doubts = None, [f"nothing was checked against the model's shape: {error}"]
    lora = plan.model.lora
    nodes = await inspect_nodes(
        model_folder if is_real else "",
        listener=(plan.frontend.host, plan.frontend.port),
        deep=deep,
        adapters={name: adapter.path for name, adapter in lora.adapters.items()} if lora else {},
    )
    problems, measured = check(plan, nodes, facts), []
    if is_real and (lanes or (lanes is None and not problems)):
        ways = routes(subject_of(plan, nodes, facts).members, on_gpus=plan.device == "cuda")
        measured = await measure_lanes([way for way in ways if lanes or way.source != way.target])
        problems = check(plan, nodes, facts, measured)
    return ClusterInspection(nodes, measured, problems, doubts + check_warnings(plan, nodes, facts), facts)


async def inspect_nodes(
    folder: str = "",
    *,
    listener: tuple[str, int] | None = None,
    deep: bool = False,
    adapters: Mapping[str, str] | None = None,
) -> list[NodeFacts]:
    """`listener`: host and port of the frontend, which listens on this process's own node.
    `adapters`: name -> folder."""
    here = ray.get_runtime_context().get_node_id()
    asked = []
    for name, node in (alive := _alive()).items():
        given, node_id = node["Resources"], node["NodeID"]
        own = (listener,) if listener and node_id == here else ()
        task = ray.remote(inspect_node).options(num_cpus=0, scheduling_strategy=_on(node_id))
        asked.append(task.remote(name, given.get("CPU", 0.0), int(given.get("GPU", 0)), folder, own, deep, adapters))
    facts: list[NodeFacts] = await _within(
        asyncio.gather(*asked), DEEP_LIMIT_S if deep else INSPECT_LIMIT_S, "the nodes"
    )
    addresses = (str(node["NodeManagerAddress"]) for node in alive.values())
    return [replace(each, shape=replace(each.shape, address=at)) for each, at in zip(facts, addresses, strict=True)]


async def measure_lanes(ways: Sequence[KvRoute]) -> list[MeasuredLane]:
    """The ends start all at once, which takes seconds; then they are measured one after the other, which takes less.

    Each way has a writer of its own: UCX tells a lane once in a process, and not again when it takes it anew.
    """
    if not ways:
        return []
    ids = {name: node["NodeID"] for name, node in _alive().items()}
    targets = list(dict.fromkeys(way.target for way in ways))
    writers = [_start_end(way.source, ids[way.source.node]) for way in ways]
    readers = [_start_end(target, ids[target.node]) for target in targets]
    try:
        asked = asyncio.gather(*(end.offer.remote() for end in (*readers, *writers)))
        offered = await _within(asked, LANE_LIMIT_S, "the lanes' ends")
        offers = dict(zip(targets, offered[: len(targets)], strict=True))
        lanes = []
        for way, writer in zip(ways, writers, strict=True):
            written = writer.write_to.remote(offers[way.target])
            who = f"{way.source.node}, writing to {way.target.node}"
            transport, gbyte_s = await _within(written, LANE_LIMIT_S, who)
            lanes.append(MeasuredLane(way.source.node, way.target.node, transport, gbyte_s))
        return lanes
    finally:
        for end in (*writers, *readers):
            ray.kill(end, no_restart=True)  # its process ends with its pipe


@contextlib.contextmanager
def ends_on_cluster(
    address: str, names: Sequence[str], gpus: Sequence[int | None], about: Mapping[str, Any]
) -> Iterator[tuple[FarEnd, FarEnd]]:
    """The writer and the reader of a measured transfer, each an actor on the node of its name, or of its address."""
    ray_cluster.connect(address, "", None, None, "")
    ends: list[FarEnd] = []
    try:
        found = _alive()
        addresses = {name: str(node["NodeManagerAddress"]) for name, node in found.items()}
        known = list(addresses.values())
        nodes = {address: found[name] for name, address in addresses.items() if known.count(address) == 1} | found
        if unknown := [name for name in names if name not in nodes]:
            there = ", ".join(f"{name} ({address})" for name, address in addresses.items())
            raise StartError("bench", f"the cluster has no node {unknown[0]!r}", f"say one of {there}")
        for name, gpu in zip(names, gpus, strict=True):
            ends.append(FarEnd(_start_end(Place(name, gpu), nodes[name]["NodeID"], **about)))
        yield ends[0], ends[1]
    finally:
        for end in ends:
            ray.kill(end.actor, no_restart=True)  # its process ends with its pipe
        ray.shutdown()


class FarEnd:
    """A LaneEnd on another node; each call waits for its answer."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def offer(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.ask("offer")
        return answer

    def ask(self, what: str, **arguments: Any) -> Any:
        return self._got(self.actor.ask.remote(what, **arguments))

    def transport(self) -> str:
        return str(self._got(self.actor.transport.remote()))

    def _got(self, asked: Any) -> Any:
        try:
            return ray.get(asked, timeout=LANE_LIMIT_S)
        except ray.exceptions.RayError as error:
            raise StartError("bench", _last_line(error), "see Ray's logs there") from error


def _start_end(place: Place, node_id: str, **about: Any) -> Any:
    return ray.remote(LaneEnd).options(num_cpus=0, scheduling_strategy=_on(node_id)).remote(place.gpu, **about)


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
        raise StartError("preflight", f"{who}: {_last_line(error)}", "see Ray's logs there") from error


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
