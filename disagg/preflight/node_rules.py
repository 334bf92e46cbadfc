"""What the nodes must have, and have alike, for the engines that go there.

Way:   Subject with nodes, described or probed -> [these rules] -> Problems that name the node
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator

from disagg.errors import Problem
from disagg.planning.cluster_shape import GIB, UNLIMITED
from disagg.preflight.lane_rules import far_pairs
from disagg.preflight.node_facts import NodeFacts, outliers
from disagg.preflight.rule import rule
from disagg.preflight.subject import PoolView, Subject

MIXED = " and "  # in the name a probe gives the GPUs of a node that has several kinds
SHM_BYTES_OF_RANK = GIB  # NCCL's troubleshooting page asks for about one; Docker gives 64 MiB in all
# The oldest driver whose libcuda runs what was built for that CUDA (minor-version compatibility within a major).
DRIVER_OF_CUDA = {"12": 525, "13": 580}
ANY = math.inf
# Argument -> value -> (lowest compute capability, highest).
ARGUMENT_NEEDS: dict[str, dict[str, tuple[float, float]]] = {
    "quantization": {"nvfp4_online": (10.0, ANY), "modelopt_fp8": (8.9, ANY)},
    "kv_cache_dtype": {"mxfp8": (10.0, ANY), "nvfp4": (10.0, ANY)},
    "attention_backend": {
        "fa3": (8.0, 9.9),
        "flashmla": (9.0, ANY),
        "trtllm_mha": (9.0, ANY),
        "trtllm_mla": (10.0, ANY),
        "cutlass_mla": (10.0, ANY),
    },
    "moe_runner_backend": {"flashinfer_cutedsl": (10.0, ANY), "flashinfer_trtllm": (10.0, ANY)},
}
FP8_EXPERTS = 8.9  # Triton's fp8e4nv


@rule("dynamo #14251", "take fewer replicas, a smaller engine or more nodes")
def _room(subject: Subject) -> Iterator[Problem]:
    """Ray waits for room that never comes, until deadlines.start_s"""
    yield from subject.unplaced


@rule("sglang #6773, #40107; dynamo #9677", "install one release on every node")
def _same_sglang(subject: Subject) -> Iterator[Problem]:
    """the two sides' messages differ between releases: requests fail in the handshake, or hang"""
    return _same(subject, "sglang", lambda node: node.shape.sglang)


@rule("sglang #6773", "install one release on every node")
def _same_nixl(subject: Subject) -> Iterator[Problem]:
    """agents exchange their metadata in a form that NIXL does not promise to keep between releases"""
    return _same(subject, "nixl", lambda node: node.shape.nixl)


def _same(subject: Subject, package: str, version_of: Callable[[NodeFacts], str | None]) -> Iterator[Problem]:
    most, others = outliers((node, version_of(node)) for node in subject.used_nodes)
    for node in others:
        what = f"{package} is {version_of(node)}, and {most} on the other nodes"
        yield Problem(f"node {node.name}", what, f"install {package} {most} there")


@rule("sglang #1533, #5614; vllm #20282", "give an engine GPUs of one kind")
def _one_kind_of_gpu(subject: Subject) -> Iterator[Problem]:
    """ranks of one engine step together and split alike: 'The memory capacity is unbalanced', or NCCL hangs"""
    for pool in subject.pools:
        for engine, places in subject.placed(pool).items():
            kinds = sorted({node.shape.gpu.name for node, member in places if node.shape.gpu and member.gpus})
            if len(kinds) > 1 or (kinds and MIXED in kinds[0] and pool.tp * pool.pp > 1):
                what = f"{engine} would get {' and '.join(kinds)}"
                yield Problem(pool.path, what, "give the engine nodes of one kind, or fewer GPUs")


@rule("sglang #38291, #12887", "take another value, or other GPUs")
def _gpus_can_do_it(subject: Subject) -> Iterator[Problem]:
    """its kernels do not exist for that GPU: the engine stops after loading, or at its first request"""
    for pool in subject.pools:
        places = (place for places in subject.placed(pool).values() for place in places)
        gpus = {(node.shape.gpu.name, node.capability) for node, _ in places if node.shape.gpu and node.capability}
        for kind, capability in sorted(gpus):
            yield from _arguments_need(pool, kind, capability or 0.0)
            model = subject.model
            if model and model.experts and model.quantisation == "fp8" and (capability or 0.0) < FP8_EXPERTS:
                what = f"has experts in fp8, and {kind} (compute capability {capability:g}) has no fp8"
                yield Problem("model.path", what, "take a bf16, int8 or int4 version of the model, or other GPUs")


def _arguments_need(pool: PoolView, kind: str, capability: float) -> Iterator[Problem]:
    for argument, needs in ARGUMENT_NEEDS.items():
        low, high = needs.get(str(pool.get(argument)), (0.0, ANY))
        if not low <= capability <= high:
            bound = f"from {low:g}" if capability < low else f"up to {high:g}"
            what = f"{pool.get(argument)} needs a compute capability {bound}; {kind} has {capability:g}"
            yield Problem(pool.at(argument), what)


@rule("sglang #4259, #1986; nccl #342", "give /dev/shm a GiB a rank")
def _shared_memory(subject: Subject) -> Iterator[Problem]:
    """NCCL stops with 'Error while creating shared memory segment' once the ranks meet"""
    ranks: Counter[str] = Counter()
    for member in (*subject.members, *subject.beside):
        ranks[member.node] += len(member.ranks) if member.gpus else 0
    for node in subject.used_nodes:
        there, count = node.shape.shm_bytes, ranks[node.name]
        if there is not None and count > 1 and there < count * SHM_BYTES_OF_RANK:
            what = f"/dev/shm has {_size(there)}, for {count} ranks"
            would_do = f"docker run --shm-size={count}g; in Kubernetes an emptyDir with medium: Memory"
            yield Problem(f"node {node.name}", what, would_do)


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / (1 << 20):.0f} MiB"


@rule("openucx #8090, #8793", "ulimit -l unlimited (docker: --ulimit memlock=-1, and IPC_LOCK)")
def _locked_memory(subject: Subject) -> Iterator[Problem]:
    """RDMA pins what it moves; past the limit registration fails, in an error nobody would look for there

    Checks the limit on locked memory where KV leaves a node's GPUs over RDMA; elsewhere nothing is pinned.
    """
    lanes = subject.said_lanes
    if subject.device != "cuda" or (lanes and "rdma" not in lanes):
        return
    far = {node.name for pair in far_pairs(subject) for node in (pair.source, pair.target)}
    for node in (node for node in subject.nodes if node.name in far):
        limit = node.shape.memlock_bytes
        if node.has_rdma and limit is not None and limit < UNLIMITED:
            yield Problem(f"node {node.name}", f"lets a process lock {_size(limit)} of memory, and has RDMA devices")


@rule("sglang #11395", "update the driver")
def _driver(subject: Subject) -> Iterator[Problem]:
    """torch finds no GPU, or CUDA stops with error 804"""
    for node in subject.used_nodes:
        major, needed = _major(node.driver), DRIVER_OF_CUDA.get(node.cuda.partition(".")[0], 0)
        if node.shape.gpus and major and major < needed:
            what = f"has driver {node.driver}, and torch there was built for CUDA {node.cuda}"
            yield Problem(f"node {node.name}", what, f"update the driver to {needed} or later, or take a CUDA 12 build")


def _major(version: str) -> int:
    match = re.match(r"(\d+)", version)
    return int(match[1]) if match else 0


@rule("", "say another frontend.port, or end what listens there")
def _ports(subject: Subject) -> Iterator[Problem]:
    """the engines load for minutes, and then the frontend cannot listen"""
    port = subject.setting("frontend.port", 8000)
    for node in subject.nodes:
        if port in node.busy_ports:
            yield Problem("frontend.port", f"{port} is taken on node {node.name}")


@rule("dynamo #12782; sglang #3265", "say max_total_tokens and mem_fraction_static")
def _shared_gpu(subject: Subject) -> Iterator[Problem]:
    """SGLang counts the neighbours' memory as its own: which start wins is a race, the other stops"""
    of_gpu: dict[tuple[str, int], list[str]] = {}
    for member in (*subject.members, *subject.beside):
        for gpu in member.gpus:
            of_gpu.setdefault((member.node, gpu), []).append(member.engine)
    crowded = {engine: engines for engines in of_gpu.values() for engine in engines if len(engines) > 1}
    for pool in subject.pools:
        engines = next((crowded[engine] for engine in pool.engines if engine in crowded), [])
        for argument, say in (("max_total_tokens", "say how many"), ("mem_fraction_static", "say 0.85")):
            if engines and pool.get(argument) is None:
                what = f"is not said, and {' and '.join(engines)} share a GPU"
                yield Problem(pool.at(argument), what, f"{say}: max_total_tokens is the bound, beside a high fraction")
