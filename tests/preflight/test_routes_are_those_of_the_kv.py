"""Measured is where KV will travel, and nowhere else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from disagg.cluster import cluster_inspect as probe
from disagg.load import parse_config
from disagg.planning.cluster_shape import parse_shape
from disagg.planning.placement import place
from disagg.planning.plan import resolve
from disagg.preflight.kv_routes import ROUTES_MAX, KvRoute, Place, routes
from disagg.preflight.node_facts import MeasuredLane, NodeFacts, described

POOLS = "version: 1\ndevice: cuda\nmodel: {path: meta-llama/Llama-3.1-8B-Instruct}\n"
NODES = "nodes: [{count: %d, name: h, cpus: 128, gpus: 8, gpu_kind: h200, nics: [{count: 8, kind: ib, gbit: 400}]}]"


def routes_of(pools: str, nodes: int) -> list[KvRoute]:
    placed, problems = place(resolve(parse_config(POOLS + pools), "cuda"), parse_shape(NODES % nodes))
    assert not problems
    return routes(placed.members, on_gpus=True)


def test_a_node_without_an_engine_is_on_no_route() -> None:
    found = routes_of("prefill: {engine: {tp_size: 8}}\ndecode: {engine: {tp_size: 8}}", 3)
    assert found == [KvRoute(Place("h-0", 0), Place("h-1", 0))]


def test_every_pair_of_nodes_of_the_two_roles_is_measured() -> None:
    found = routes_of("prefill: {replicas: 2, engine: {tp_size: 8}}\ndecode: {nodes: 2, engine: {tp_size: 16}}", 4)
    pairs = {(route.source.node, route.target.node) for route in found}
    assert len(pairs) == len(found) == 4
    assert not {source for source, _ in pairs} & {target for _, target in pairs}


def test_on_one_node_it_is_from_a_gpu_to_another() -> None:
    assert routes_of("prefill: {}\ndecode: {}", 1) == [KvRoute(Place("h", 0), Place("h", 1))]
    shared = "{resources: {gpus: 0.4}, engine: {max_total_tokens: 1024, mem_fraction_static: 0.8}}"
    assert routes_of(f"prefill: {shared}\ndecode: {shared}", 1) == [KvRoute(Place("h", 0), Place("h", 0))]


def test_they_are_bounded_and_pass_every_node() -> None:
    found = routes_of("prefill: {replicas: 12, engine: {tp_size: 8}}\ndecode: {replicas: 20, engine: {tp_size: 8}}", 32)
    assert len(found) == len(set(found)) == ROUTES_MAX
    assert len({place.node for route in found for place in route}) == 32


def test_engines_that_do_both_hand_nothing_over() -> None:
    assert routes_of("aggregated: {replicas: 2, engine: {tp_size: 8}}", 2) == []


@pytest.mark.parametrize("gpus", [1, 0.4])
def test_serving_measures_between_two_gpus_of_one_node(gpus: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a working cuda_ipc KV would go over TCP there, too."""
    measured: list[KvRoute] = []

    async def inspect_nodes(*_: Any, **__: Any) -> list[NodeFacts]:
        return list(described(parse_shape(NODES % 1)))

    async def measure_lanes(ways: list[KvRoute]) -> list[MeasuredLane]:
        measured.extend(ways)
        return [MeasuredLane(way.source.node, way.target.node, "tcp", 0.5) for way in ways]

    monkeypatch.setattr(probe, "inspect_nodes", inspect_nodes)
    monkeypatch.setattr(probe, "measure_lanes", measure_lanes)
    pool = f"{{resources: {{gpus: {gpus}}}, engine: {{max_total_tokens: 131072, mem_fraction_static: 0.85}}}}"
    plan = resolve(parse_config(f"{POOLS}prefill: {pool}\ndecode: {pool}"), "cuda")
    seen = asyncio.run(probe.inspect_cluster(plan, plan.model.path))
    between_gpus = gpus == 1
    assert len(measured) == between_gpus
    assert [problem.path for problem in seen.problems] == ["transfer.allow_tcp"] * between_gpus
