"""What this machine is and has, for the preflight; a probe runs it on every node.

Way:   probe -> Ray task on a node -> [inspect_node] -> NodeFacts -> rules
Out:   in well under a second without a GPU. torch and SGLang are not imported: their versions are read
Fails: never; what cannot be found out is "not known"
"""

from __future__ import annotations

import errno
import os
import re
import resource
import subprocess
from collections.abc import Iterable, Mapping
from importlib import util
from pathlib import Path

import psutil

from disagg.cluster.ports import why_not_bound
from disagg.installed import installed_version
from disagg.models.adapters import read_adapter
from disagg.planning.cluster_shape import UNLIMITED, Nic, NodeShape
from disagg.planning.gpu_kinds import GPU_KINDS, GpuKind
from disagg.preflight.model_files import read_model_files
from disagg.preflight.node_facts import NodeFacts
from disagg.preflight.node_rules import MIXED

INFINIBAND = Path("/sys/class/infiniband")
OWN_STATUS = Path("/proc/self/status")
CAP_IPC_LOCK = 14  # <linux/capability.h>
SMI_LIMIT_S = 20.0
NIXL_PACKAGES = ("nixl", "nixl-cu12", "nixl-cu13")
GPU_QUERY, CSV = "--query-gpu=name,memory.total,compute_cap,driver_version", "--format=csv,noheader,nounits"


def inspect_node(
    name: str,
    cpus: float,
    gpus: int,
    folder: str = "",
    listeners: Iterable[tuple[str, int]] = (),
    deep: bool = False,
    adapters: Mapping[str, str] | None = None,
) -> NodeFacts:
    """`cpus` and `gpus`: what Ray gives out here, which may be less than there is. `listeners`: each (host, port) that
    our own processes will listen on here. `adapters`: name -> folder."""
    rows = [row for row in (line.split(", ") for line in _smi(GPU_QUERY, CSV)) if len(row) == 4] if gpus else []
    sized = [(row[0], int(mib)) for row in rows if (mib := _number(row[1])) is not None]
    links_gbyte_s = _nvlink_of_a_gpu(_smi("nvlink", "--status")) if rows else 0.0
    shape = NodeShape(
        name=name,
        cpus=cpus,
        gpus=gpus,
        gpu=_kind(sized, links_gbyte_s) if sized else None,
        memory_bytes=psutil.virtual_memory().total,
        shm_bytes=_shared_memory(),
        memlock_bytes=_lockable(),
        nvlink=_nvlink_domain(name, "\n".join(_smi("-q"))) if links_gbyte_s else "",
        nics=tuple(_rdma_devices()),
        sglang=installed_version("sglang"),
        nixl=next(filter(None, map(installed_version, NIXL_PACKAGES)), None),
    )
    return NodeFacts(
        shape,
        capability=min((number for row in rows if (number := _number(row[2])) is not None), default=None),
        driver=rows[0][3] if rows else "",
        cuda=_cuda_of_torch(),
        busy_ports=tuple(port for host, port in listeners if _is_taken(host, port)),
        files=read_model_files(Path(folder), deep) if folder else None,
        adapters={name: read_adapter(path, folder) for name, path in (adapters or {}).items()},
        was_looked_at=True,
    )


def _smi(*arguments: str) -> list[str]:
    try:
        done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=SMI_LIMIT_S)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def _number(field: str) -> float | None:
    """None: [N/A], as where GPU and host share one memory, or [Unknown Error]."""
    try:
        return float(field)
    except ValueError:
        return None


def _kind(gpus: list[tuple[str, int]], nvlink_gbyte_s: float) -> GpuKind:
    """The kind by its name in our table of GPUs, or by the name the driver gives."""
    names = list(dict.fromkeys(_known_name(shown, mib) for shown, mib in gpus))
    speeds = [(kind.tflops, kind.memory_gbyte_s) if (kind := GPU_KINDS.get(name)) else (0.0, 0.0) for name in names]
    return GpuKind(MIXED.join(names), min(mib for _, mib in gpus), nvlink_gbyte_s, *min(speeds))


def _known_name(shown: str, memory_mib: int) -> str:
    words = shown.lower().split()
    for kind in GPU_KINDS.values():
        model, _, rest = kind.name.partition("-")
        is_same = model in words and ("pcie" in words) == (rest == "pcie")
        if is_same and abs(kind.memory_mib - memory_mib) < 0.05 * memory_mib:
            return kind.name
    return shown


def _nvlink_of_a_gpu(status: list[str]) -> float:
    """The links of the first GPU, added up: `Link 0: 26.562 GB/s`."""
    rates: list[float] = []
    for line in status:
        if line.startswith("GPU ") and rates:
            break
        found = re.match(r"\s*Link \d+: ([\d.]+) GB/s", line)
        if found:
            rates.append(float(found[1]))
    return round(sum(rates), 1)


def _nvlink_domain(name: str, details: str) -> str:
    """The node's own; or a rack's, where GPUs of several nodes form one fabric."""
    cluster = re.search(r"ClusterUUID\s*:\s*([0-9a-fA-F-]{36})", details)
    clique = re.search(r"CliqueId\s*:\s*(\d+)", details)
    is_shared = cluster is not None and set(cluster[1]) - set("0-")
    return f"rack:{cluster[1]}-{clique[1] if clique else 0}" if cluster and is_shared else f"node:{name}"


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
    """A process with CAP_IPC_LOCK is not held to the limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    capabilities = re.search(r"^CapEff:\s*([0-9a-f]+)$", _text(OWN_STATUS), re.MULTILINE)
    is_exempt = capabilities is not None and bool(int(capabilities[1], 16) >> CAP_IPC_LOCK & 1)
    return UNLIMITED if is_exempt or soft == resource.RLIM_INFINITY else soft


def _cuda_of_torch() -> str:
    torch = util.find_spec("torch")
    text = _text(Path(torch.origin).parent / "version.py") if torch is not None and torch.origin else ""
    found = re.search(r"^cuda\b[^=]*=\s*'([\d.]+)'", text, re.MULTILINE)
    return found[1] if found else ""


def _is_taken(host: str, port: int) -> bool:
    """Whether the port is in use. False for an address that is not this node's: nothing is known of it here."""
    error = why_not_bound(host, port)
    return error is not None and error.errno == errno.EADDRINUSE
