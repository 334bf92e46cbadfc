"""What is known of a node, whether a file describes it or a probe looked.

Way:   described cluster, or probes on the live one -> [NodeFacts] -> Subject -> rules
Out:   plain data. None, or an empty text, is "not known": no rule refuses for that
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from disagg.models.adapters import AdapterFiles
from disagg.planning.cluster_shape import RDMA, ClusterShape, NodeShape
from disagg.planning.gpu_kinds import CAPABILITIES

T = TypeVar("T")


class ModelFiles(NamedTuple):
    """A node's copy of the model. Digests, empty where nothing was read; `absent` says why nothing is there."""

    folder: str
    absent: str = ""
    missing: tuple[str, ...] = ()  # named by the index of the weights, and not there
    truncated: tuple[str, ...] = ()  # shorter than their own headers say
    pointers: tuple[str, ...] = ()  # of git-lfs, in the place of the files
    damaged: tuple[str, ...] = ()  # no JSON, or no UTF-8
    sizes: str = ""  # of the weight files' names and sizes
    config: str = ""  # of config.json
    tokenizer: str = ""  # of the tokenizer's files
    content: str = ""  # of all that an engine reads; only with --deep
    decoder: tuple[str, ...] | None = None  # the steps of the tokenizer's; None: not known
    model_type: str = ""
    needs_remote_code: bool = False


class MeasuredLane(NamedTuple):
    """One NIXL transfer between two nodes: what UCX said carried it, and how fast it was."""

    source: str  # nodes
    target: str
    transport: str  # several, joined with +; empty: not known
    gbyte_s: float

    @property
    def transports(self) -> list[str]:
        return self.transport.split("+")


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """A node's shape, and what only an inspection of the node shows."""

    shape: NodeShape
    capability: float | None = None  # of its GPUs
    driver: str = ""
    cuda: str = ""  # what its torch was built for: 12.9, 13.0
    busy_ports: tuple[int, ...] = ()
    files: ModelFiles | None = None
    adapters: Mapping[str, AdapterFiles] = field(default_factory=dict)  # by name, as they are there
    was_looked_at: bool = False  # inspected: what was not found there does not exist, else it is not known

    @property
    def name(self) -> str:
        return self.shape.name

    @property
    def has_rdma(self) -> bool | None:
        """None where nothing is said of its network."""
        known = self.was_looked_at or self.shape.nics
        return any(nic.kind in RDMA for nic in self.shape.nics) if known else None


def described(shape: ClusterShape) -> tuple[NodeFacts, ...]:
    return tuple(NodeFacts(node, capability=CAPABILITIES.get(node.gpu) if node.gpu else None) for node in shape.nodes)


def outliers(said: Iterable[tuple[T, str | None]]) -> tuple[str, list[T]]:
    """What most say, and those that say another thing. Who says nothing is neither; of equals the first counts."""
    pairs = [(who, what) for who, what in said if what]
    most = next((what for what, _ in Counter(what for _, what in pairs).most_common(1)), "")
    return most, [who for who, what in pairs if what != most]
