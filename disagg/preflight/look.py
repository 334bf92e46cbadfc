"""What this machine is and has, for the preflight; a probe runs it on every node.

Way:   probe -> Ray task on a node -> [look] -> NodeFacts -> rules
Out:   in well under a second without a GPU. torch and SGLang are not imported: their versions are read
Fails: never; what cannot be found out is "not known"
"""

from __future__ import annotations

import os
import re
import resource
import socket
import subprocess
from collections.abc import Iterable
from importlib import metadata, util
from pathlib import Path

import psutil

from disagg.config.cluster_shape import UNLIMITED, Nic, NodeShape
from disagg.config.gpu_kinds import GPU_KINDS, GpuKind
from disagg.preflight.model_files import read_model_files
from disagg.preflight.node_rules import MIXED
from disagg.preflight.nodes import NodeFacts

INFINIBAND = Path("/sys/class/infiniband")
SMI_LIMIT_S = 20.0
NIXL_PACKAGES = ("nixl", "nixl-cu12", "nixl-cu13")
GPU_QUERY = "--query-gpu=name,memory.total,compute_cap,driver_version"


def look(
    name: str, cpus: float, gpus: int, folder: str = "", ports: Iterable[int] = (), deep: bool = False
) -> NodeFacts:
    """`cpus` and `gpus` are what Ray gives out here, which may be less than there is."""
    shown = [line.split(", ") for line in _smi(GPU_QUERY, "--format=csv,noheader,nounits")]
    kinds = list(dict.fromkeys((row[0], int(row[1])) for row in shown if len(row) == 4))
    details = "\n".join(_smi("-q")) if kinds else ""
    shape = NodeShape(
        name=name,
        cpus=cpus,
        gpus=gpus,
        gpu=_kind(kinds, "nvlink" in details.lower()) if gpus else None,
        memory_bytes=psutil.virtual_memory().total,
        shm_bytes=_shared_memory(),
        memlock_bytes=_lockable(),
        nvlink=_nvlink_domain(name, details) if gpus else "",
        nics=tuple(_rdma_devices()),
        sglang=_version("sglang"),
        nixl=next(filter(None, map(_version, NIXL_PACKAGES)), None),
    )
    return NodeFacts(
        shape,
        capability=min((float(row[2]) for row in shown if len(row) == 4), default=None),
        driver=shown[0][3] if kinds else "",
        cuda=_cuda_of_torch(),
        busy_ports=tuple(port for port in ports if _is_taken(port)),
        files=read_model_files(Path(folder), deep) if folder else None,
        was_looked_at=True,
    )


def _smi(*arguments: str) -> list[str]:
    try:
        done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=SMI_LIMIT_S)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def _kind(kinds: list[tuple[str, int]], has_nvlink: bool) -> GpuKind | None:
    if not kinds:
        return None
    name = MIXED.join(dict.fromkeys(name for name, _ in kinds))
    rates = (kind.nvlink_gbyte_s for kind in GPU_KINDS.values() if kind.name.partition("-")[0] in name.lower())
    return GpuKind(name, min(mib for _, mib in kinds), max(rates, default=0.0) if has_nvlink else 0.0)


def _nvlink_domain(name: str, details: str) -> str:
    """A rack's, where GPUs of several nodes form one fabric; else the node's own, where it has NVLink at all."""
    cluster = re.search(r"ClusterUUID\s*:\s*([0-9a-fA-F-]{36})", details)
    clique = re.search(r"CliqueId\s*:\s*(\d+)", details)
    if cluster and set(cluster[1]) - set("0-"):
        return f"rack:{cluster[1]}-{clique[1] if clique else 0}"
    has_links = any(line.strip().startswith("Link ") for line in _smi("nvlink", "--status"))
    return f"node:{name}" if has_links else ""


def _rdma_devices() -> Iterable[Nic]:
    for port in sorted(INFINIBAND.glob("*/ports/*")):
        state, layer, rate = (_text(port / name) for name in ("state", "link_layer", "rate"))
        if "ACTIVE" in state:
            yield Nic("roce" if layer == "Ethernet" else "ib", float(rate.split()[0]) if rate else 0.0)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _shared_memory() -> int | None:
    try:
        found = os.statvfs("/dev/shm")
    except OSError:
        return None
    return found.f_blocks * found.f_frsize


def _lockable() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return UNLIMITED if soft == resource.RLIM_INFINITY else soft


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cuda_of_torch() -> str:
    torch = util.find_spec("torch")
    text = _text(Path(torch.origin).parent / "version.py") if torch is not None and torch.origin else ""
    found = re.search(r"^cuda\b[^=]*=\s*'([\d.]+)'", text, re.MULTILINE)
    return found[1] if found else ""


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False
