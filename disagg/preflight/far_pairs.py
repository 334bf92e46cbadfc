"""Between which nodes KV travels where no NVLink joins them: what RDMA, or TCP, has to do.

Way:   Subject with placed engines -> [far_pairs] -> rules about lanes and locked memory
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from disagg.planning.lanes import fabric_memory, nvlink_joins
from disagg.preflight.nodes import NodeFacts
from disagg.preflight.subject import PoolView, Subject


class FarPair(NamedTuple):
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
