"""What `disagg check` says of a described cluster is what Ray does on one: the same engines fit, as tightly."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from disagg.config import parse_config, resolve
from disagg.config.cluster_shape import parse_shape
from disagg.config.placement import place
from disagg.config.plan import EnginePlan, Plan

pytestmark = pytest.mark.nodes
CLUSTER = parse_shape("nodes: [{count: 3, cpus: 8, gpus: 8, gpu_kind: h200}]")
# In the plan's order the last three have an engine without a place; the largest first, only the last has.
CASES = (
    "prefill: {replicas: 2, engine: {tp_size: 4}}\ndecode: {replicas: 2, engine: {tp_size: 4}}",
    "prefill: {nodes: 2, engine: {tp_size: 16}}\ndecode: {engine: {tp_size: 8}}",
    "prefill: {replicas: 2, engine: {tp_size: 4}}\ndecode: {engine: {tp_size: 8}}",
    "prefill: {replicas: 3, engine: {tp_size: 4}}\ndecode: {engine: {tp_size: 8}}",
    "prefill: {replicas: 4, engine: {tp_size: 2}}\ndecode: {replicas: 2, engine: {tp_size: 8}}",
    "prefill: {replicas: 3, resources: {gpus: 0.6}}\ndecode: {replicas: 2, nodes: 2, engine: {tp_size: 14}}",
)


def test_the_same_engines_find_a_place_and_fill_the_nodes_alike() -> None:
    plans = [resolve(parse_config(f"version: 1\ndevice: cuda\nmodel: {{path: m}}\n{text}"), "cuda") for text in CASES]
    asked = [[(engine.id, engine.nodes, _bundle(engine)) for engine in plan.largest_first()] for plan in plans]
    command = [sys.executable, str(Path(__file__).parent / "places_of_ray.py"), json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for plan, by_ray in zip(plans, json.loads(done.stdout.splitlines()[-1]), strict=True):
        members = place(plan, CLUSTER)[0].members
        ours = {engine.id: [m.node for m in members if m.engine == engine.id] or None for engine in plan.engines}
        assert {name for name, nodes in ours.items() if nodes} == {name for name, nodes in by_ray.items() if nodes}
        assert _loads(plan, ours) == _loads(plan, by_ray)


def _bundle(engine: EnginePlan) -> dict[str, float]:
    return {"CPU": engine.cpus, "GPU": engine.gpus}


def _loads(plan: Plan, places: dict[str, list[str] | None]) -> list[float]:
    """GPUs taken on each node, most first: which of several equal nodes it is does not matter."""
    taken: Counter[str] = Counter()
    for engine in plan.engines:
        for node in places[engine.id] or ():
            taken[node] += engine.gpus  # type: ignore[assignment]
    return sorted((round(gpus, 3) for gpus in taken.values()), reverse=True)
