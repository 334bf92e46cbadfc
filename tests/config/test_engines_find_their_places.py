"""A described cluster, and where a plan's engines come to lie on it."""

import textwrap

import pytest

from disagg.errors import ConfigError, Problem
from disagg.load import parse_config
from disagg.planning.cluster_shape import UNLIMITED, ClusterShape, parse_shape
from disagg.planning.placement import Placement, place
from disagg.planning.plan import Plan, resolve

H200 = "nodes: [{count: %d, name: h, cpus: 64, gpus: 8, gpu_kind: h200}]"


def plan_of(pools: str, device: str = "cuda") -> Plan:
    return resolve(parse_config(f"version: 1\ndevice: {device}\nmodel: {{path: m}}\n" + textwrap.dedent(pools)), device)  # type: ignore[arg-type]


def places(pools: str, cluster: str) -> tuple[dict[str, list[str]], list[Problem]]:
    placement, problems = place(plan_of(pools), parse_shape(cluster))
    return shown(placement), problems


def shown(placement: Placement) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for member in placement.members:
        gpus = ",".join(map(str, member.gpus))
        found.setdefault(member.engine, []).append(f"{member.node}:{gpus} ranks {member.ranks[0]}-{member.ranks[-1]}")
    return found


def test_one_gpu_holds_two_engines_that_share_it() -> None:
    pools = "prefill: {resources: {gpus: 0.45}}\ndecode: {resources: {gpus: 0.45}}"
    assert places(pools, "nodes: [{cpus: 8, gpus: 1, gpu_kind: h100-80g}]") == (
        {"prefill-0": ["node:0 ranks 0-0"], "decode-0": ["node:0 ranks 0-0"]},
        [],
    )


def test_engines_of_one_node_go_to_the_emptiest_node() -> None:
    pools = "prefill: {replicas: 2, engine: {tp_size: 4}}\ndecode: {replicas: 2, engine: {tp_size: 4}}"
    assert places(pools, H200 % 2)[0] == {
        "prefill-0": ["h-0:0,1,2,3 ranks 0-3"],
        "prefill-1": ["h-1:0,1,2,3 ranks 0-3"],
        "decode-0": ["h-0:4,5,6,7 ranks 0-3"],
        "decode-1": ["h-1:4,5,6,7 ranks 0-3"],
    }


def test_members_of_a_gang_go_to_nodes_of_their_own() -> None:
    pools = """
        prefill: {nodes: 4, engine: {tp_size: 32, dp_size: 32, enable_dp_attention: true}}
        decode: {nodes: 9, engine: {tp_size: 72, dp_size: 72, enable_dp_attention: true}}
    """
    found, problems = places(pools, H200 % 13)
    assert not problems
    assert found["prefill-0"] == [f"h-{i}:0,1,2,3,4,5,6,7 ranks {8 * i}-{8 * i + 7}" for i in range(4)]
    assert [place.split(":")[0] for place in found["decode-0"]] == [f"h-{i}" for i in range(4, 13)]


def test_small_engines_leave_a_large_one_its_node() -> None:
    pools = "prefill: {replicas: 3, engine: {tp_size: 4}}\ndecode: {engine: {tp_size: 8}}"
    found, problems = places(pools, H200 % 3)
    assert not problems
    assert len(found) == 4


def test_what_does_not_fit_is_told_and_the_others_are_placed() -> None:
    pools = "prefill: {nodes: 2, engine: {tp_size: 16}}\ndecode: {replicas: 2, engine: {tp_size: 8}}"
    found, problems = places(pools, H200 % 3)
    assert sorted(found) == ["decode-0", "prefill-0"]
    (problem,) = problems
    assert problem.path == "decode"
    assert "decode-1 needs 8 GPU and 1 CPU on one node, and none of 3 has room" in problem.what
    assert "more nodes" in problem.would_do


def test_eight_gpus_on_two_nodes_are_no_eight_on_one() -> None:
    _, problems = places("aggregated: {engine: {tp_size: 8}}", "nodes: [{count: 2, cpus: 9, gpus: 4, gpu_kind: gb200}]")
    assert "aggregated-0 needs 8 GPU" in problems[0].what


def test_gpus_that_are_shared_already_are_no_whole_ones() -> None:
    pools = """
        prefill: [{resources: {gpus: 0.6}}, {resources: {gpus: 0.6}}]
        decode: {resources: {gpus: 1}}
    """
    _, problems = places(pools, "nodes: [{cpus: 8, gpus: 2, gpu_kind: h200}]")
    assert [problem.path for problem in problems] == ["prefill.1"]


def test_cpus_count_too() -> None:
    pools = "prefill: [{}, {resources: {cpus: 6}}]\ndecode: {resources: {cpus: 2}}"
    plan = plan_of(pools, "cpu")
    placement, problems = place(plan, parse_shape("nodes: [{name: a, cpus: 4}, {name: b, cpus: 2}]"))
    assert shown(placement) == {"prefill-0": ["a: ranks 0-0"], "decode-0": ["a: ranks 0-0"]}
    assert [problem.path for problem in problems] == ["prefill.1"]


@pytest.mark.parametrize("gpus_of_engine", [1, 2, 4, 8])
@pytest.mark.parametrize("nodes", [1, 2, 3, 4])
def test_whatever_the_shape_no_gpu_is_given_twice_and_all_are_used(nodes: int, gpus_of_engine: int) -> None:
    count = nodes * 8 // gpus_of_engine
    pools = f"aggregated: {{replicas: {count}, engine: {{tp_size: {gpus_of_engine}}}}}"
    placement, problems = place(plan_of(pools), parse_shape(H200 % nodes))
    used = [(member.node, gpu) for member in placement.members for gpu in member.gpus]
    assert not problems
    assert len(used) == len(set(used)) == nodes * 8
    assert placement == place(plan_of(pools), parse_shape(H200 % nodes))[0]


def test_a_description_says_only_what_is_known() -> None:
    shape = parse_shape(
        """
        nodes:
        - {name: cpu, cpus: 2}
        - count: 2
          name: rack
          cpus: 144
          memory_gib: 960
          shm_gib: 480
          memlock: unlimited
          gpus: 4
          gpu_kind: gb200
          nvlink: rack:0
          nics: [{count: 4, kind: ib, gbit: 400}, {kind: ethernet, gbit: 200}]
          sglang: 0.5.20
          nixl: 1.5.1
          model: true
        - {name: h, cpus: 8, gpus: 1, gpu_kind: h200}
        - {name: l, cpus: 8, gpus: 1, gpu_kind: l40s, memlock: 0.5}
        """
    )
    cpu, rack, other, h200, l40s = shape.nodes
    assert (cpu.gpu, cpu.memory_bytes, cpu.memlock_bytes, cpu.nvlink, cpu.has_model) == (None, None, None, "", None)
    assert rack.gpu is not None
    assert (rack.name, rack.gpu.memory_mib, rack.memlock_bytes, rack.shm_bytes) == (
        "rack-0",
        189_471,
        UNLIMITED,
        480 << 30,
    )
    assert rack.nvlink == other.nvlink == "rack:0"
    assert (rack.rdma_gbyte_s, rack.nics[-1], rack.sglang, rack.has_model) == (200, ("ethernet", 200), "0.5.20", True)
    assert (h200.nvlink, l40s.nvlink, l40s.memlock_bytes) == ("node:h", "", 1 << 29)
    assert shape.gpus == 10


MISTAKES = {
    "empty": ("", "cluster", "describes no cluster"),
    "no nodes": ("nodes: []", "nodes", "must have at least 1, has 0"),
    "one group that is no list": ("nodes: {cpus: 1}", "nodes", "must be a list"),
    "unknown key": ("nodes: [{cpus: 1, gpu: 1}]", "nodes.0.gpu", "did you mean gpus?"),
    "unknown key below": ("nodes: [{cpus: 1, nics: [{knd: ib, kind: ib, gbit: 1}]}]", "nodes.0.nics.0.knd", "kind?"),
    "no cpus": ("nodes: [{}]", "nodes.0.cpus", "is missing"),
    "unknown GPU": ("nodes: [{cpus: 1, gpus: 1, gpu_kind: H200}]", "nodes.0.gpu_kind", "did you mean h200?"),
    "GPUs of no kind": ("nodes: [{cpus: 1, gpus: 1}]", "nodes.0", "add `gpu_kind`"),
    "a domain nobody knows": ("nodes: [{cpus: 1, nvlink: rack}]", "nodes.0.nvlink", "say none, node or rack:ID"),
    "an address for two": ("nodes: [{count: 2, cpus: 1, address: 10.0.0.1}]", "nodes.0.address", "cannot share"),
    "two of one name": ("nodes: [{cpus: 1}, {cpus: 1}]", "nodes", "two have the name node"),
    "a version that YAML reads as a number": ("nodes: [{cpus: 1, sglang: 0.5}]", "nodes.0.sglang", "must be text"),
    "a version that is none": ("nodes: [{cpus: 1, sglang: abc}]", "nodes.0.sglang", "'abc' is no version; say one"),
    "a network of no kind": ("nodes: [{cpus: 1, nics: [{kind: wifi, gbit: 1}]}]", "nodes.0.nics.0.kind", "'ib'"),
    "syntax": ("nodes: [", "cluster:1:9", "not YAML"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_description_is_told_with_its_path(name: str) -> None:
    text, path, message = MISTAKES[name]
    with pytest.raises(ConfigError) as caught:
        parse_shape(text)
    assert [problem.path for problem in caught.value.problems] == [path]
    assert message in str(caught.value.problems[0])


def test_all_mistakes_of_a_description_are_told_together() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_shape("nodes: [{cpus: 0, gpu_kind: x}, {count: 0, cpus: 1}]")
    assert len(caught.value.problems) == 3


def test_a_shape_can_be_made_without_a_file() -> None:
    assert ClusterShape("10.0.0.1:6379", ()).gpus == 0
