"""Each recipe resolves, and each member of its engines finds its GPUs on the cluster that its header names."""

from __future__ import annotations

from collections import Counter

import pytest

from disagg.cli.check import look_at, problems_of
from disagg.planning.cluster_shape import ClusterShape
from disagg.planning.placement import place
from disagg.planning.plan import Plan
from disagg.sglang.releases import installed_release
from tests.recipes.catalogue import CLUSTERS, CONFIGS, RECIPES, cluster, cluster_of, plan_of

GENERIC = "4x8-h200.yaml"
# recipe: {engine: (nodes, ranks on each)}
EXPECTED = {
    "moe-4gpus": {"prefill-0": (1, 2), "decode-0": (1, 2)},
    "deepseek-2x8-h200": {"prefill-0": (1, 8), "decode-0": (1, 8)},
    "deepseek-64xh100": {"prefill-0": (4, 8), "decode-0": (4, 8)},
    "deepseek-96xh100": {"prefill-0": (4, 8), "decode-0": (9, 8)},
    "deepseek-gb200-nvl72": {"prefill-0": (2, 4), "prefill-1": (2, 4), "prefill-2": (2, 4), "decode-0": (12, 4)},
    "qwen3-235b-2x8-h200": {"prefill-0": (1, 4), "prefill-1": (1, 4), "prefill-2": (1, 4), "decode-0": (1, 4)},
    "llama-70b-8-h100": {"prefill-0": (1, 4), "decode-0": (1, 4)},
    "gpt-oss-120b-8-h100": {"prefill-0": (1, 4), "decode-0": (1, 4)},
    "deepseek-tiny-2nodes": {"prefill-0": (2, 1), "decode-0": (2, 1)},
    "moe-cpu": {"prefill-0": (1, 2), "decode-0": (1, 2)},
    "moe-ep-cpu": {"prefill-0": (1, 2), "decode-0": (1, 2)},
}
FIT_32_GPUS = ["moe-4gpus", "deepseek-2x8-h200", "qwen3-235b-2x8-h200", "llama-70b-8-h100", "gpt-oss-120b-8-h100"]


def test_every_recipe_is_expected_here() -> None:
    assert set(EXPECTED) == set(RECIPES)
    unused = {path.name for path in (CONFIGS / "clusters").glob("*.yaml")} - set(CLUSTERS.values())
    assert unused == {GENERIC}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_fills_the_cluster_that_it_names(recipe: str) -> None:
    engines, shape = EXPECTED[recipe], cluster_of(recipe)
    assert members_of(plan_of(recipe), shape) == engines
    assert shape.gpus in (0, sum(nodes * ranks for nodes, ranks in engines.values()))


@pytest.mark.parametrize("recipe", FIT_32_GPUS)
def test_a_recipe_of_up_to_32_gpus_finds_its_place_on_four_nodes_of_8(recipe: str) -> None:
    assert members_of(plan_of(recipe), cluster(GENERIC)) == EXPECTED[recipe]


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if recipe not in FIT_32_GPUS])
def test_a_larger_recipe_is_told_what_is_missing_on_four_nodes_of_8(recipe: str) -> None:
    _, problems = place(plan_of(recipe), cluster(GENERIC))
    fits = plan_of(recipe).device == "cpu"
    assert bool(problems) is not fits
    for problem in problems:
        assert "needs" in problem.what


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if any(n > 1 for n, _ in EXPECTED[recipe].values())])
def test_one_node_less_is_one_engine_without_a_place(recipe: str) -> None:
    plan, shape = plan_of(recipe), cluster_of(recipe)
    _, problems = place(plan, ClusterShape(shape.source, shape.nodes[:-1]))
    assert problems


def test_the_lmsys_shape_fits_its_12_nodes_with_prefill_on_three() -> None:
    sets = (
        "prefill.nodes=3",
        "prefill.engine.tp_size=24",
        "prefill.engine.dp_size=24",
        "prefill.engine.chunked_prefill_size=393216",
        "prefill.engine.max_running_requests=6144",
    )
    header = (CONFIGS / "deepseek-96xh100.yaml").read_text()
    assert all(f"--set {one}" in header for one in sets)
    shape = cluster("13x8-h100.yaml")
    members = members_of(plan_of("deepseek-96xh100", sets), ClusterShape(shape.source, shape.nodes[:12]))
    assert members == {"prefill-0": (3, 8), "decode-0": (9, 8)}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_check_that_a_header_names_finds_nothing_wrong(recipe: str) -> None:
    (seen,) = look_at(str(CONFIGS / f"{recipe}.yaml"), (), str(CONFIGS / "clusters" / CLUSTERS[recipe]))
    assert problems_of(seen) == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_installed_sglang_knows_every_argument_that_a_recipe_emits(recipe: str) -> None:
    sglang = installed_release()
    assert sglang is not None
    plan = plan_of(recipe)
    assert plan.warnings == ()
    for engine in plan.engines:
        for name, value in engine.engine.items():
            choices = sglang.arguments[name].choices
            assert not choices or not isinstance(value, str) or value in choices, f"{engine.id} {name}={value}"


def members_of(plan: Plan, shape: ClusterShape) -> dict[str, tuple[int, int]]:
    """{engine: (nodes, ranks on each)}; every GPU used once, every rank once, in order."""
    placement, problems = place(plan, shape)
    assert problems == []
    used = Counter((member.node, gpu) for member in placement.members for gpu in member.gpus)
    assert not used or max(used.values()) == 1
    found: dict[str, tuple[int, int]] = {}
    for engine in plan.engines:
        members = placement.of(engine.id)
        assert [rank for member in members for rank in member.ranks] == list(range(engine.ranks))
        assert len({member.node for member in members}) == len(members)
        (each,) = {len(member.ranks) for member in members}
        if plan.device == "cuda":
            assert {len(member.gpus) for member in members} == {each}
        found[engine.id] = (len(members), each)
    return found
