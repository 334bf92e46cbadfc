"""The preflight on a Ray cluster that runs: two raylets on this machine are two nodes to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from disagg.errors import ConfigError
from disagg.load import parse_config
from disagg.models.resolve import resolve_model
from disagg.planning.plan import Plan, resolve
from disagg.preflight.kv_routes import KvRoute, Place

pytestmark = [pytest.mark.engine, pytest.mark.nodes]
YAML = """
version: 1
device: cpu
model: {path: smollm2}
prefill: {engine: {page_size: 16}}
decode: {engine: {page_size: 16}}
"""


@pytest.fixture(scope="module")
def ray_of_two_nodes() -> Iterator[None]:
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()
    cluster.shutdown()


def plan(*sets: str) -> Plan:
    return resolve(parse_config(YAML, sets), "cpu")


@pytest.mark.usefixtures("ray_of_two_nodes")
def test_a_good_deployment_passes_and_the_lanes_between_its_nodes_are_measured() -> None:
    from disagg.cluster import cluster_inspect as probe

    folder = str(resolve_model("smollm2"))

    async def look() -> None:
        assert (await probe.refuse([plan()], [folder]))[0].warnings == []
        began = time.monotonic()
        nodes = await probe.inspect_nodes(folder)
        print(f"looked at {len(nodes)} nodes in {time.monotonic() - began:.1f} s")
        assert len({node.name for node in nodes}) == 2
        assert [(node.shape.cpus, node.shape.gpus) for node in nodes] == [(1.0, 0)] * 2
        assert all(node.files and not node.files.absent and node.shape.sglang for node in nodes)
        first, second = (Place(node.name, None) for node in nodes)
        lanes = await probe.measure_lanes([KvRoute(first, second), KvRoute(second, first), KvRoute(first, first)])
        assert [(lane.source, lane.target) for lane in lanes] == [
            (nodes[0].name, nodes[1].name),
            (nodes[1].name, nodes[0].name),
            (nodes[0].name, nodes[0].name),
        ]
        print(lanes)
        assert all(lane.transport and lane.gbyte_s > 0.01 for lane in lanes)

    asyncio.run(look())


@pytest.mark.usefixtures("ray_of_two_nodes")
def test_what_the_nodes_lack_is_refused(tmp_path: Path) -> None:
    from disagg.cluster import cluster_inspect as probe

    async def look() -> None:
        with pytest.raises(ConfigError) as refused:
            await probe.refuse([plan("prefill.resources.cpus=2")], [str(tmp_path)])
        told = {problem.path: problem for problem in refused.value.problems}
        assert set(told) == {"prefill", "model.path"}
        assert "has room" in told["prefill"].what
        assert "config.json is not there" in told["model.path"].what

    asyncio.run(look())
