"""What the nodes of a cluster share: NVLink domains as their GPUs say, and what an operator says.

Way:   `transfer.places`, and nodes as the preflight found them -> [labels_of] -> Setting -> supervisors
Out:   labels by address; a word for each node that is named and not there
Fails: never
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from disagg.config.schema import NodeLabels
from disagg.nearness import NVLINK
from disagg.preflight.node_facts import NodeFacts

OF_SEVERAL = "rack:"  # what a NodeShape's `nvlink` begins with where it is more than the node's own


def labels_of(
    nodes: Iterable[NodeFacts], said: Mapping[str, NodeLabels]
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """`said`: by a node's name or address; it counts before what was found."""
    labels: dict[str, dict[str, str]] = {}
    unknown = dict.fromkeys(said)
    for node in nodes:
        address, domain = node.shape.address or node.name, node.shape.nvlink
        found = labels.setdefault(address, {NVLINK: domain} if domain.startswith(OF_SEVERAL) else {})
        for key in (node.name, address):
            if key in said:
                found |= said[key].said
                unknown.pop(key, None)
    return labels, [f"transfer.places.{key}: the cluster has no such node; its labels do nothing" for key in unknown]
