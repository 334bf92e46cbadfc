"""How KV will travel between the engines: what the nodes' hardware allows, and what a probe measured.

Way:   Subject with nodes, and measured lanes where a probe ran -> [these rules] -> Problems
"""

from __future__ import annotations

from collections.abc import Iterator

from disagg.errors import Problem
from disagg.preflight.nodes import NodeFacts
from disagg.preflight.rule import Rule
from disagg.preflight.subject import PoolView, Subject


def _tcp_between_nodes(subject: Subject) -> Iterator[Problem]:
    if subject.device != "cuda" or subject.setting("transfer.allow_tcp") is True:
        return
    for prefill, decode, source, target in _first_far_pairs(subject):
        without = next((node for node in (source, target) if node.has_rdma is False), None)
        if without is None:
            continue
        what = f"{prefill.path} on {source.name} and {decode.path} on {target.name} have only TCP between them: "
        what += f"{without.name} has no RDMA device"
        yield Problem("transfer.allow_tcp", what)


def _lanes_that_reach(subject: Subject) -> Iterator[Problem]:
    """`transfer.lanes` names what the deployment may use; cuda_ipc alone does not leave an NVLink domain."""
    lanes = subject.setting("transfer.lanes")
    if not isinstance(lanes, list | tuple) or not lanes or {"rdma", "tcp"} & set(lanes):
        return
    for prefill, decode, source, target in _first_far_pairs(subject):
        what = f"are {', '.join(map(str, lanes))}, and none leads from {source.name} ({prefill.path}) to "
        yield Problem("transfer.lanes", f"{what}{target.name} ({decode.path})")


def _first_far_pairs(subject: Subject) -> Iterator[tuple[PoolView, PoolView, NodeFacts, NodeFacts]]:
    """For each pair of pools, the first nodes that no NVLink joins: told once, not for each of 36 pairs."""
    for prefill, decode in subject.pairs():
        sources = [node for places in subject.placed(prefill).values() for node, _ in places]
        targets = [node for places in subject.placed(decode).values() for node, _ in places]
        far = ((source, target) for source in sources for target in targets if source.name != target.name)
        for source, target in far:
            if not _share_nvlink(source, target):
                yield prefill, decode, source, target
                break


def _share_nvlink(source: NodeFacts, target: NodeFacts) -> bool:
    return bool(source.shape.nvlink) and source.shape.nvlink == target.shape.nvlink


def _measured(subject: Subject) -> Iterator[Problem]:
    if subject.setting("transfer.allow_tcp") is True:
        return
    on_gpus = {node.name for node in subject.nodes if node.shape.gpus}
    for lane in subject.lanes:
        between = lane.source != lane.target or lane.source in on_gpus
        if between and subject.device == "cuda" and set(lane.transport.split("+")) <= {"tcp"}:
            what = f"UCX took {lane.transport or 'nothing known'} from {lane.source} to {lane.target}: "
            what += f"{lane.gbyte_s:.2f} GB/s"
            yield Problem("transfer.allow_tcp", what)


RULES = (
    Rule(
        "tcp_between_nodes",
        _tcp_between_nodes,
        "KV crawls: 98 s to the first token instead of 0.2 to 0.5",
        "nixl #366, #1097; Dynamo's disagg-communication page",
        "install the RDMA stack there, or say transfer.allow_tcp: true",
    ),
    Rule(
        "lanes_that_reach",
        _lanes_that_reach,
        "no transfer would ever succeed",
        "vllm #26382; openucx #10743",
        "add rdma to transfer.lanes, or put both roles into one NVLink domain",
    ),
    Rule(
        "measured_lane",
        _measured,
        "UCX falls back to TCP without a word: a library, a device or a permission is missing",
        "nixl #366, #1754; dynamo #1314",
        "look at `ucx_info -d` there, or say transfer.allow_tcp: true",
    ),
)
