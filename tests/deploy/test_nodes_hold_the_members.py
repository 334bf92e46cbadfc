"""Members of engines packed on nodes: what a scheduler is asked for."""

from __future__ import annotations

import pytest

from disagg.deploy.nodes import NodeGroup, pack, unfit
from disagg.load import parse_config
from disagg.planning.cluster_shape import parse_shape
from disagg.planning.placement import place
from disagg.planning.plan import Plan, resolve


def plan(prefill: str, decode: str, device: str = "cuda") -> Plan:
    text = f"version: 1\ndevice: {device}\nmodel: {{path: smollm2}}\nprefill: {prefill}\ndecode: {decode}\n"
    return resolve(parse_config(text), device)  # type: ignore[arg-type]


def sizes(found: tuple[NodeGroup, ...]) -> list[tuple[int, int, int]]:
    return [(group.gpus, group.cpus, group.count) for group in found]


def test_two_engines_that_share_a_gpu_need_one() -> None:
    shared = plan("{resources: {gpus: 0.45}}", "{resources: {gpus: 0.45}}")
    assert sizes(pack(shared, 8, None)) == [(1, 2, 1)]


def test_parts_that_no_gpu_holds_together_get_two() -> None:
    parts = plan("{resources: {gpus: 0.6}}", "{resources: {gpus: 0.6}}")
    assert sizes(pack(parts, 8, None)) == [(2, 2, 1)]
    assert sizes(pack(parts, 1, None)) == [(1, 1, 2)]


def test_a_whole_gpu_is_never_one_of_which_a_part_is_taken() -> None:
    mixed = plan("{resources: {gpus: 0.5}}", "{resources: {gpus: 1}}")
    assert sizes(pack(mixed, 2, None)) == [(2, 2, 1)]
    assert sizes(pack(mixed, 1, None)) == [(1, 1, 2)]


def test_members_of_one_engine_are_on_nodes_of_their_own() -> None:
    gang = plan("{nodes: 2, engine: {tp_size: 4}}", "{nodes: 2, engine: {tp_size: 4}}")
    assert pack(gang, 8, None) == (NodeGroup(4, 2, 2, ("prefill-0", "decode-0")),)
    assert sizes(pack(gang, 2, None)) == [(2, 1, 4)]


def test_small_engines_fill_what_large_ones_leave() -> None:
    several = plan("{replicas: 3, engine: {tp_size: 2}}", "{replicas: 1, engine: {tp_size: 8}}")
    assert sizes(pack(several, 8, None)) == [(8, 1, 1), (6, 3, 1)]


def test_cpus_limit_a_node_too() -> None:
    on_cpu = plan("{replicas: 2}", "{replicas: 2}", device="cpu")
    assert sizes(pack(on_cpu, 0, None)) == [(0, 4, 1)]
    assert sizes(pack(on_cpu, 0, 3)) == [(0, 2, 2)]  # Ray spreads them: not 3 here and 1 there


def test_members_find_room_where_ray_puts_them() -> None:
    """First fit takes two nodes of 8; Ray gives each of the large ones a node of its own, and leaves no room for 2."""
    pools = "[" + ", ".join(f"{{resources: {{cpus: {cpus}}}}}" for cpus in (4, 4, 3, 3)) + "]"
    several = plan(pools, "{resources: {cpus: 2}}", device="cpu")
    found = pack(several, 0, 8)
    assert sizes(found) == [(0, 6, 3)]
    assert set(found[0].engines) == {engine.id for engine in several.engines}
    shape = "\n".join(["nodes:", "- {count: 3, cpus: 6}"])
    assert place(several, parse_shape(shape))[1] == []


def test_no_more_nodes_than_the_widest_engine_needs_where_the_others_fit_beside_it() -> None:
    """First fit put two prefill engines on the same two nodes, and took 14: decode then lacked two with room."""
    rack = plan("{replicas: 3, nodes: 2, engine: {tp_size: 8}}", "{nodes: 12, engine: {tp_size: 48}}")
    assert sizes(pack(rack, 8, None)) == [(8, 2, 6), (4, 1, 6)]
    assert sizes(pack(rack, 4, None)) == [(4, 1, 18)]


@pytest.mark.parametrize(
    ("prefill", "path"), [("{engine: {tp_size: 16}}", "prefill"), ("{resources: {cpus: 5}}", "prefill.resources.cpus")]
)
def test_a_member_that_no_node_holds_is_named(prefill: str, path: str) -> None:
    assert [problem.path for problem in unfit(plan(prefill, "{}"), 8, 4)] == [path]
