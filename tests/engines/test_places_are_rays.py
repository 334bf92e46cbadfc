"""What `disagg check` says of a described cluster is what Ray does on one: the same engines fit, as tightly."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from disagg.load import parse_config
from disagg.planning.cluster_shape import parse_shape
from disagg.planning.placement import place
from disagg.planning.plan import EnginePlan, Plan, resolve
from tests.recipes.catalogue import plan_of
from tests.recipes.test_recipes_find_their_places import FIT_32_GPUS

pytestmark = pytest.mark.nodes
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
    texts = [f"version: 1\ndevice: cuda\nmodel: {{path: m}}\n{text}" for text in CASES]
    _assert_alike([resolve(parse_config(text), "cuda") for text in texts], nodes=3)


def test_every_recipe_that_fits_four_nodes_of_8_gpus_has_its_place_there() -> None:
    plans = [plan_of(recipe) for recipe in FIT_32_GPUS]
    assert all(places for by_ray in _assert_alike(plans, nodes=4) for places in by_ray.values())


def _assert_alike(plans: list[Plan], nodes: int) -> list[dict[str, list[str] | None]]:
    """Returns what Ray did."""
    shape = parse_shape(f"nodes: [{{count: {nodes}, cpus: 64, gpus: 8, gpu_kind: h200}}]")
    asked = [[(engine.id, engine.nodes, _bundle(engine)) for engine in plan.largest_first()] for plan in plans]
    command = [sys.executable, str(Path(__file__).parent / "places_of_ray.py"), str(nodes), json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, list[str] | None]] = json.loads(done.stdout.splitlines()[-1])
    for plan, by_ray in zip(plans, answers, strict=True):
        members = place(plan, shape)[0].members
        ours = {engine.id: [m.node for m in members if m.engine == engine.id] or None for engine in plan.engines}
        assert {name for name, there in ours.items() if there} == {name for name, there in by_ray.items() if there}
        assert _loads(plan, ours) == _loads(plan, by_ray)
    return answers


def _bundle(engine: EnginePlan) -> dict[str, float]:
    return {"CPU": engine.cpus, "GPU": engine.gpus}


def _loads(plan: Plan, places: dict[str, list[str] | None]) -> list[float]:
    """GPUs taken on each node, most first: which of several equal nodes it is does not matter."""
    taken: Counter[str] = Counter()
    for engine in plan.engines:
        for node in places[engine.id] or ():
            taken[node] += engine.gpus  # type: ignore[assignment]
    return sorted((round(gpus, 3) for gpus in taken.values()), reverse=True)
