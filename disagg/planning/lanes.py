"""The ways KV can travel between two nodes, and what a prompt's KV costs on each.

Way:   cluster shape + placement -> [lanes] -> `disagg check`, preflight
Out:   rates for planning. Only a real transfer shows which lane UCX takes, and how fast (`disagg check --on-cluster`)
Owns:  the rates and where they come from
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from disagg.models.facts import ModelFacts
from disagg.planning.cluster_shape import RDMA, ClusterShape, NodeShape
from disagg.planning.gpu_kinds import GPU_KINDS
from disagg.planning.kv_pages import real_page_size
from disagg.planning.memory import Arguments, kv_bytes_of_rank
from disagg.planning.placement import Placement
from disagg.planning.plan import Plan
from disagg.role_table import ROLES

# NIXL posts a run of neighbouring pages as one descriptor. A descriptor costs 2.6 µs over cuda_ipc (H200, NIXL 1.5).
DESCRIPTOR_S = 2.6e-6
# NVLink between nodes reaches only memory that was allocated for it: SGLang does that where this says so.
FABRIC_MEMORY = "SGLANG_MOONCAKE_CUSTOM_MEM_POOL"


class Lane(NamedTuple):
    kind: str  # as in transfer.lanes: cuda_ipc, rdma, shm, tcp
    name: str
    gbyte_s: float  # of one rank's transfer
    source: str


SAME_GPU = Lane("cuda_ipc", "same GPU", 540, "measured on an H200: 540 to 1490 GB/s, adjacent pages")
PCIE = Lane("cuda_ipc", "PCIe", 25, "PCIe 4.0 x16, less its overhead")
SHM = Lane("shm", "shared memory", 5, "a copy by one core; not measured")
TCP = Lane("tcp", "TCP", 0.5, "measured with cuda_ipc taken away: 0.5 GB/s; 1.2 at best")
NDR = Lane("rdma", "400 Gb/s InfiniBand or RoCE", 50, "line rate of one NIC a rank")
GBIT_100 = Lane("rdma", "100 Gb/s RoCE", 12.5, "line rate")


def nvlink(kind: str) -> Lane:
    return Lane("cuda_ipc", f"NVLink of {kind}", GPU_KINDS[kind].nvlink_gbyte_s, "NVIDIA's data sheet, one direction")


def usual_lanes(device: str) -> tuple[Lane, ...]:
    """Where no cluster is known."""
    return (SHM, TCP) if device == "cpu" else (SAME_GPU, nvlink("h200"), NDR, GBIT_100, TCP)


def fabric_memory(*environments: Mapping[str, str]) -> bool:
    """Whether engines with these environments, one for each end, have their KV where a rack's NVLink reaches it."""
    return all(env.get(FABRIC_MEMORY, "").lower() not in ("", "0", "false", "no", "none") for env in environments)


def nvlink_joins(source: NodeShape, target: NodeShape, *, fabric: bool) -> bool:
    """`fabric`: the KV is in memory that NVLink between nodes reaches."""
    return bool(source.nvlink) and source.nvlink == target.nvlink and (source.name == target.name or fabric)


def lane_between(source: NodeShape, target: NodeShape, *, same_gpu: bool = False, fabric: bool = False) -> Lane:
    """The best one that the hardware and, for NVLink between nodes, the KV's memory allow."""
    near = source.name == target.name
    if same_gpu:
        return SAME_GPU
    if source.gpu and target.gpu and nvlink_joins(source, target, fabric=fabric):
        return nvlink(min(source.gpu, target.gpu, key=lambda kind: kind.nvlink_gbyte_s).name)
    if near and source.gpu:
        return PCIE
    if near:
        return SHM
    rdma = min(_nic_of_rank(source), _nic_of_rank(target))
    return Lane("rdma", f"RDMA, {rdma * 8:g} Gb/s a rank", rdma, "line rate") if rdma else TCP


def lanes_in_use(plan: Plan, pool: str, placement: Placement, shape: ClusterShape) -> dict[Lane, int]:
    """Lane -> how many pairs of members, of an engine of `pool` and of one that takes its KV, lie at its ends."""
    engines = {engine.id: engine for engine in plan.engines}
    nodes = {node.name: node for node in shape.nodes}
    sources = [member for member in placement.members if engines[member.engine].pool == pool]
    roles = {member.role for member in sources}
    targets = [member for member in placement.members if ROLES[member.role].takes_kv_from in roles]
    pairs: dict[Lane, int] = {}
    for source in sources:
        for target in targets:
            shared = source.node == target.node and bool(set(source.gpus) & set(target.gpus))
            fabric = fabric_memory(engines[source.engine].env, engines[target.engine].env)
            lane = lane_between(nodes[source.node], nodes[target.node], same_gpu=shared, fabric=fabric)
            pairs[lane] = pairs.get(lane, 0) + 1
    return pairs


def transfer_s(lane: Lane, arguments: Arguments, facts: ModelFacts, tokens: int) -> tuple[float, float]:
    """Seconds to send a prompt's KV in one go: (if all its pages are neighbours, if no two of them are).

    `arguments` are the prefill engine's: its ranks send side by side, each its own share.
    """
    at_best = kv_bytes_of_rank(arguments, facts, tokens) / (lane.gbyte_s * 1e9)
    pages = -(-tokens // real_page_size(arguments)[0])
    layers = facts.layers - facts.linear_layers
    return at_best, at_best + pages * layers * (1 if facts.is_mla else 2) * DESCRIPTOR_S


def _nic_of_rank(node: NodeShape) -> float:
    """GB/s that one rank gets: a NIC of its own, or a share where there are fewer NICs than ranks. 0: no RDMA."""
    largest = max((nic.gbit / 8 for nic in node.nics if nic.kind in RDMA), default=0.0)
    return min(largest, node.rdma_gbyte_s / max(1, node.gpus))
