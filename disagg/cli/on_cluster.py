"""`disagg check --on-cluster`: the nodes as they are, the lanes between them, and what would fail there.

Way:   check -> [look_at_cluster] -> a cluster that runs already; none is started -> disagg/cluster/cluster_inspect.py
Fails: ConfigError with every problem; StartError when there is no cluster
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

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
    from disagg.planning.plan import device_of, resolve_parts

    deployment = load_config(find_config(config), sets)
    models = [part.model for part in deployment.parts()]
    folders = [str(resolve_model(model.path, model.revision)) for model in models]
    address = "auto" if deployment.ray.address == "local" else deployment.ray.address
    ray_cluster.connect(address, "", None, None, "")
    try:
        plans = resolve_parts(deployment, device_of(deployment, ray.cluster_resources().get("GPU", 0.0)))
        asked = zip(plans, folders, strict=True)
        seen = asyncio.run(_each(inspect_cluster(plan, at, lanes=lanes or None, deep=deep) for plan, at in asked))
    finally:
        ray.shutdown()
    trees = [dataclasses.asdict(each) for each in seen]
    said = trees[0] if len(trees) == 1 else dict(zip(deployment.models, trees, strict=True))
    lines = dict.fromkeys(line for each in seen for line in _lines(each))
    print(json.dumps(said, indent=2, default=str) if as_json else "\n".join(lines))
    if problems := tuple(dict.fromkeys(problem for each in seen for problem in each.problems)):
        if as_json:
            raise typer.Exit(2)
        sys.stdout.flush()
        raise ConfigError(config, problems)


async def _each(inspections: Iterable[Coroutine[Any, Any, ClusterInspection]]) -> list[ClusterInspection]:
    """One model after the other: lanes that are measured side by side would be slower."""
    return [await each for each in inspections]


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
