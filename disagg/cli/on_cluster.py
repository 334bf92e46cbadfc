"""`disagg check --on-cluster`: the nodes as they are, the lanes between them, and what would fail there.

Way:   check -> [look_at_cluster] -> a cluster that runs already; none is started -> disagg/cluster/cluster_inspect.py
Fails: ConfigError with every problem; StartError when there is no cluster
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import typer

from disagg.errors import ConfigError
from disagg.planning.cluster_shape import GIB

if TYPE_CHECKING:
    from disagg.cluster.cluster_inspect import ClusterInspection
    from disagg.preflight.node_facts import NodeFacts


def look_at_cluster(config: str, sets: Sequence[str], *, lanes: bool, deep: bool, as_json: bool) -> None:
    import ray

    from disagg.cluster import ray_cluster
    from disagg.cluster.cluster_inspect import inspect_cluster
    from disagg.config.find import find_config
    from disagg.load import load_config
    from disagg.models.resolve import resolve_model
    from disagg.planning.plan import device_of, resolve

    deployment = load_config(find_config(config), sets)
    folder = resolve_model(deployment.model.path, deployment.model.revision)
    address = "auto" if deployment.ray.address == "local" else deployment.ray.address
    ray_cluster.connect(address, "", None, None, "")
    try:
        plan = resolve(deployment, device_of(deployment, ray.cluster_resources().get("GPU", 0.0)))
        seen = asyncio.run(inspect_cluster(plan, str(folder), lanes=lanes or None, deep=deep))
    finally:
        ray.shutdown()
    print(json.dumps(dataclasses.asdict(seen), indent=2, default=str) if as_json else "\n".join(_lines(seen)))
    if seen.problems:
        if as_json:
            raise typer.Exit(2)
        sys.stdout.flush()
        raise ConfigError(config, tuple(seen.problems))


def _lines(seen: ClusterInspection) -> Iterator[str]:
    for node in seen.nodes:
        yield f"node {node.name}: {', '.join(_of_node(node))}"
    for lane in seen.lanes:
        yield f"lane {lane.source} -> {lane.target}: {lane.transport or 'not told'}, {lane.gbyte_s:.2f} GB/s"
    yield from (f"warning: {warning}" for warning in seen.warnings)


def _of_node(node: NodeFacts) -> Iterator[str]:
    shape = node.shape
    yield f"{shape.cpus:g} CPU"
    if shape.gpu:
        yield f"{shape.gpus} {shape.gpu.name}, driver {node.driver}"
    if shape.shm_bytes is not None:
        yield f"/dev/shm {shape.shm_bytes / GIB:.1f} GiB"
    yield ", ".join(f"{nic.kind} {nic.gbit:g} Gb/s" for nic in shape.nics) or "no RDMA"
    yield f"sglang {shape.sglang or 'not there'}, nixl {shape.nixl or 'not there'}"
    if node.files:
        yield node.files.absent or f"model {node.files.sizes[:8]}"
