"""A cluster as a YAML file describes it, so that a deployment can be planned and checked without being there.

Way:   --assume-cluster FILE -> [ClusterShape] -> placement, lanes, memory estimate, preflight
In:    groups of equal nodes; what the file leaves out is unknown, and not checked
Out:   a frozen ClusterShape with every node by its own name. Preflight's probes make the same of a real cluster
Fails: ConfigError with every problem of the file
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator, model_validator

from disagg.config.schema import POOL_NAME
from disagg.config.section import Section, listed
from disagg.config.validation_errors import near_miss, problems_of
from disagg.config.yaml_text import read_file, read_tree
from disagg.errors import ConfigError, Problem
from disagg.planning.gpu_kinds import GPU_KINDS, GpuKind

GIB = 1 << 30
UNLIMITED = 1 << 63
NODES_MAX = 4096
RDMA = ("ib", "roce")


class Nic(NamedTuple):
    kind: str  # ib, roce, ethernet
    gbit: float


@dataclass(frozen=True, slots=True)
class NodeShape:
    """One node. None: not known."""

    name: str
    cpus: float
    gpus: int = 0
    gpu: GpuKind | None = None
    address: str | None = None
    memory_bytes: int | None = None
    shm_bytes: int | None = None
    memlock_bytes: int | None = None  # UNLIMITED where it is
    nvlink: str = ""  # the GPUs that can reach each other over NVLink say the same: a node, a rack. Empty: none
    nics: tuple[Nic, ...] = ()
    sglang: str | None = None
    nixl: str | None = None
    has_model: bool | None = None

    @property
    def rdma_gbyte_s(self) -> float:
        return sum(nic.gbit for nic in self.nics if nic.kind in RDMA) / 8


@dataclass(frozen=True, slots=True)
class ClusterShape:
    source: str  # the file, or the address of a cluster that was looked at
    nodes: tuple[NodeShape, ...]

    @property
    def gpus(self) -> int:
        return sum(node.gpus for node in self.nodes)

    def node(self, name: str) -> NodeShape:
        return next(node for node in self.nodes if node.name == name)


def load_shape(path: Path) -> ClusterShape:
    return parse_shape(read_file(path), str(path))


def parse_shape(text: str, source: str = "cluster") -> ClusterShape:
    tree, problems = read_tree(text, source)
    if not problems and not isinstance(tree, dict):
        problems = [Problem(source, "describes no cluster", "say `nodes:`, a list of groups of equal nodes")]
    if not isinstance(tree, dict):
        raise ConfigError(source, tuple(problems))
    try:
        described = _Cluster.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(source, (*problems, *problems_of(error, tree, _Cluster))) from None
    nodes = tuple(node for group in described.nodes for node in group.each())
    problems += _names_differ(nodes)
    if problems:
        raise ConfigError(source, tuple(problems))
    return ClusterShape(source, nodes)


class _Nics(Section):
    count: Annotated[int, Field(ge=1, le=64)] = 1
    kind: Literal["ib", "roce", "ethernet"]
    gbit: Annotated[float, Field(gt=0, le=10_000)]  # of each


class _Group(Section):
    count: Annotated[int, Field(ge=1, le=1000)] = 1
    name: Annotated[str, Field(pattern=POOL_NAME)] = "node"
    address: str | None = None
    cpus: Annotated[float, Field(gt=0, le=4096)]
    memory_gib: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    shm_gib: Annotated[float, Field(ge=0, le=1_000_000)] | None = None
    memlock: Literal["unlimited"] | Annotated[float, Field(ge=0)] | None = None  # or GiB
    gpus: Annotated[int, Field(ge=0, le=64)] = 0
    gpu_kind: str | None = None
    nvlink: str | None = None  # none, node, rack:ID; default: node, for a kind that has NVLink
    nics: Annotated[tuple[_Nics, ...], BeforeValidator(listed)] = ()
    sglang: str | None = None
    nixl: str | None = None
    model: bool | None = None  # whether model.path is there

    @field_validator("address")
    @classmethod
    def _of_one_node(cls, address: str | None, info: ValidationInfo) -> str | None:
        if address is not None and info.data.get("count", 1) > 1:
            raise ValueError(f"{info.data['count']} nodes cannot share {address}; leave it out, or describe each node")
        return address

    @field_validator("gpu_kind")
    @classmethod
    def _known_kind(cls, kind: str | None) -> str | None:
        if kind is not None and kind not in GPU_KINDS:
            near = near_miss(kind, GPU_KINDS) or f"known: {', '.join(GPU_KINDS)}"
            raise ValueError(f"{kind!r} is not known; {near}")
        return kind

    @field_validator("sglang", "nixl")
    @classmethod
    def _a_version(cls, version: str | None) -> str | None:
        if version is not None and not re.match(r"\d+\.\d+", version):
            raise ValueError(f"{version!r} is no version; say one as `pip show` prints it (0.5.20)")
        return version

    @field_validator("nvlink")
    @classmethod
    def _a_domain(cls, nvlink: str | None) -> str | None:
        if nvlink not in (None, "none", "node") and not re.fullmatch(r"rack:[A-Za-z0-9_-]+", str(nvlink)):
            raise ValueError(f"{nvlink!r} is no NVLink domain; say none, node or rack:ID (rack:0)")
        return nvlink

    @model_validator(mode="after")
    def _gpus_have_a_kind(self) -> _Group:
        if self.gpus and self.gpu_kind is None:
            raise ValueError(f"has {self.gpus} GPUs of no kind; add `gpu_kind`, one of {', '.join(GPU_KINDS)}")
        return self

    def each(self) -> Iterator[NodeShape]:
        kind = GPU_KINDS[self.gpu_kind] if self.gpus and self.gpu_kind else None
        default = "node" if kind and kind.nvlink_gbyte_s else "none"
        memlock = UNLIMITED if self.memlock == "unlimited" else _bytes(self.memlock)
        for index in range(self.count):
            name = self.name if self.count == 1 else f"{self.name}-{index}"
            domain = {"none": "", "node": f"node:{name}"}
            nvlink = self.nvlink or default
            yield NodeShape(
                name=name,
                cpus=self.cpus,
                gpus=self.gpus,
                gpu=kind,
                address=self.address,
                memory_bytes=_bytes(self.memory_gib),
                shm_bytes=_bytes(self.shm_gib),
                memlock_bytes=memlock,
                nvlink=domain.get(nvlink, nvlink) if kind else "",
                nics=tuple(Nic(nics.kind, nics.gbit) for nics in self.nics for _ in range(nics.count)),
                sglang=self.sglang,
                nixl=self.nixl,
                has_model=self.model,
            )


class _Cluster(Section):
    """What a described cluster's file holds."""

    nodes: Annotated[tuple[_Group, ...], BeforeValidator(listed), Field(min_length=1)]


def _bytes(gib: float | str | None) -> int | None:
    return round(gib * GIB) if isinstance(gib, int | float) else None


def _names_differ(nodes: tuple[NodeShape, ...]) -> Iterator[Problem]:
    if len(nodes) > NODES_MAX:
        yield Problem("nodes", f"are {len(nodes)}, more than {NODES_MAX}", "describe fewer")
    seen: set[str] = set()
    for node in nodes:
        for what, said in (("name", node.name), ("address", node.address)):
            if said is not None and f"{what} {said}" in seen:
                yield Problem("nodes", f"two have the {what} {said}", "give each group its own")
            seen.add(f"{what} {said}")
