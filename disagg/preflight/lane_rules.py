"""How KV will travel between the engines: what the nodes' hardware allows, and what a probe measured.

Way:   Subject with nodes, and measured lanes where a probe ran -> [these rules] -> Problems
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from disagg.errors import Problem
from disagg.planning.lanes import FABRIC_MEMORY, fabric_memory, nvlink_joins
from disagg.preflight.node_facts import MeasuredLane, NodeFacts
from disagg.preflight.rule import rule
from disagg.preflight.subject import PoolView, Subject

# A lane as transfer.lanes names it -> UCX's transports that are one. cuda_copy is a way to the host, no lane.
TRANSPORTS = {
    "cuda_ipc": re.compile(r"cuda_ipc"),
    "rdma": re.compile(r"ib|srd|gga(_\w+)?|(rc|dc|ud)(_\w+)?"),
    "shm": re.compile(r"shm|sm|posix|sysv|cma|knem|xpmem"),
    "tcp": re.compile(r"tcp"),
}


class FarPair(NamedTuple):
    """Nodes between which KV travels and no NVLink joins them: RDMA, or TCP, has to do."""

    prefill: PoolView
    decode: PoolView
    source: NodeFacts
    target: NodeFacts


def far_pairs(subject: Subject) -> Iterator[FarPair]:
    """Any prefill engine may send to any decode engine: every such pair of nodes, pool by pool."""
    for prefill, decode in subject.pairs():
        fabric = fabric_memory(prefill.env, decode.env)
        targets = _nodes(subject, decode)
        for source in _nodes(subject, prefill):
            for target in targets:
                if source.name != target.name and not nvlink_joins(source.shape, target.shape, fabric=fabric):
                    yield FarPair(prefill, decode, source, target)


def _nodes(subject: Subject, pool: PoolView) -> list[NodeFacts]:
    return list({node.name: node for places in subject.placed(pool).values() for node, _ in places}.values())


@rule(
    "nixl #366, #1097; Dynamo's disagg-communication page",
    "install the RDMA stack there, or say transfer.allow_tcp: true",
)
def _tcp_between_nodes(subject: Subject) -> Iterator[Problem]:
    """KV crawls: 98 s to the first token instead of 0.2 to 0.5

    One problem for two pools, not one for each of their pairs of nodes.
    """
    if subject.device != "cuda" or subject.setting("transfer.allow_tcp") is True:
        return
    without = (pair for pair in far_pairs(subject) if False in (pair.source.has_rdma, pair.target.has_rdma))
    for prefill, decode, source, target in _one_of_two_pools(without):
        lacks = source if source.has_rdma is False else target
        what = f"{prefill.path} on {source.name} and {decode.path} on {target.name} have only TCP between them: "
        what += f"{lacks.name} has no RDMA device"
        if source.shape.nvlink and source.shape.nvlink == target.shape.nvlink:
            what += f", and NVLink between nodes does not reach KV without {FABRIC_MEMORY} in both pools' env"
        yield Problem("transfer.allow_tcp", what)


@rule("vllm #26382; openucx #10743", "add rdma to transfer.lanes, or put both roles into one NVLink domain")
def _lanes_that_reach(subject: Subject) -> Iterator[Problem]:
    """no transfer would ever succeed

    `transfer.lanes` names what the preflight demands; cuda_ipc alone does not leave an NVLink domain.
    """
    lanes = subject.said_lanes
    if not lanes or {"rdma", "tcp"} & lanes:
        return
    for prefill, decode, source, target in _one_of_two_pools(far_pairs(subject)):
        what = f"are {', '.join(sorted(lanes))}, and none leads from {source.name} ({prefill.path}) to "
        yield Problem("transfer.lanes", f"{what}{target.name} ({decode.path})")


def _one_of_two_pools(pairs: Iterable[FarPair]) -> Iterator[FarPair]:
    told: set[tuple[str, str]] = set()
    for pair in pairs:
        pools = (pair.prefill.path, pair.decode.path)
        if pools not in told:
            told.add(pools)
            yield pair


@rule("nixl #366, #1754; dynamo #1314", "look at `ucx_info -d` there, or say transfer.allow_tcp: true")
def _measured_lane(subject: Subject) -> Iterator[Problem]:
    """UCX falls back to TCP without a word: a library, a device or a permission is missing

    A transfer on which TCP has a part is as slow as TCP: cuda_copy+tcp brings KV to the host first.
    """
    if subject.setting("transfer.allow_tcp") is True or subject.device != "cuda":
        return
    for lane in subject.lanes:
        if not lane.transport or "tcp" in lane.transports:
            yield Problem("transfer.allow_tcp", _took(lane))


@rule("nixl #366; vllm #26382", "look at `ucx_info -d` there, or name that lane in transfer.lanes")
def _measured_as_said(subject: Subject) -> Iterator[Problem]:
    """UCX takes what it finds, whatever transfer.lanes says: KV would go another way than was asked for

    Checks measured lanes between nodes against transfer.lanes, which demands nothing within a node.
    """
    lanes = subject.said_lanes
    for lane in (lane for lane in subject.lanes if lane.source != lane.target):
        kinds = {kind for kind, names in TRANSPORTS.items() if any(map(names.fullmatch, lane.transports))}
        if lanes and not kinds <= lanes:
            yield Problem("transfer.lanes", f"are {', '.join(sorted(lanes))}, and {_took(lane)}")


def _took(lane: MeasuredLane) -> str:
    return f"UCX took {lane.transport or 'nothing known'} from {lane.source} to {lane.target}: {lane.gbyte_s:.2f} GB/s"
