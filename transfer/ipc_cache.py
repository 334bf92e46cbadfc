"""Gives back a dead peer's GPU memory, while UCX's cache of CUDA IPC mappings stays on for the living.

Way:   a peer is dead -> disagg/sglang/plugins/transfer.py removes its agent -> [forget], QUIET_S later -> UCX closes
       what it had mapped
Why:   UCX keeps a peer's buffers mapped until its own process ends, dead peer or not, and CUDA keeps memory that is
       mapped. Without that cache (UCX_CUDA_IPC_CACHE=n) every transfer maps all its buffers anew.
How:   UCX looks a peer's buffer up by (pid, pid namespace, device) and address. Found under another buffer's id, the
       mapping is stale to it: it is closed and taken out of the cache, under UCX's own locks, and the new one opened.
       We ask for exactly that, with an id that no buffer has and a kind of handle that cannot be opened.
Fails: with a UCX whose key we do not know the cache is switched off (settle): 7 ms a transfer on an H200 instead of 1
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, MutableMapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from disagg.installed import installed_version

KNOWN_NIXL = ("1.5.1",)  # whose bundled UCX was read: _Key, and how its map function treats a stale buffer
QUIET_S = 0.5  # copies to the peer that were under way are over by then: CUDA must not find their mapping gone
VARIABLE = "UCX_CUDA_IPC_CACHE"
_OFF = ("n", "no", "off", "0")  # as UCX reads it
_PACKAGES = ("nixl-cu13", "nixl-cu12")
_LIBRARY = "libuct_cuda.so"
_DEVICES_MAX = 64
_LOG_FATAL = 0  # UCX's level for what it says when the open fails: it does, and is not worth a line
_NO_BUFFER = (1 << 64) - 1


class Identity(NamedTuple):
    """A process, as UCX names it to its peers."""

    pid: int
    pid_namespace: int

    def __str__(self) -> str:
        return f"{self.pid}.{self.pid_namespace}"


class _Key(ctypes.Structure):
    """uct_cuda_ipc_extended_rkey_t."""

    _fields_ = (
        ("handle_type", ctypes.c_uint64),  # 0: none, cannot be opened
        ("handle", ctypes.c_ubyte * 0x88),
        ("buffer_id", ctypes.c_uint64),
        ("pid", ctypes.c_int32),
        ("base", ctypes.c_uint64),
        ("length", ctypes.c_uint64),
        ("gpu", ctypes.c_ubyte * 16),
        ("pid_namespace", ctypes.c_uint32),
    )


def identity() -> Identity:
    return Identity(os.getpid(), os.stat("/proc/self/ns/pid").st_ino & 0xFFFFFFFF)


def identity_of(text: str) -> Identity | None:
    """Of what str(identity()) was in that process."""
    pid, dot, namespace = text.partition(".")
    return Identity(int(pid), int(namespace)) if dot and pid.isdigit() and namespace.isdigit() else None


def settle(environment: MutableMapping[str, str] = os.environ) -> None:
    """Before UCX starts in this process: the cache stays on where `forget` works. What an operator has said stands."""
    if not is_known():
        environment.setdefault(VARIABLE, "n")


def is_on() -> bool:
    return os.environ.get(VARIABLE, "").lower() not in _OFF


@cache
def is_known() -> bool:
    versions = set(filter(None, map(installed_version, _PACKAGES)))
    return bool(versions) and versions <= set(KNOWN_NIXL)


def forget(peer: Identity, addresses: Iterable[int]) -> bool:
    """Nothing may be on its way to `peer`. `addresses`: one at least in each of its buffers. False: cannot be done."""
    library = _loaded_library()
    if library is None or not is_known():
        return False
    for address in addresses:
        for device in range(_device_count()):
            mapped = ctypes.c_void_p()
            key = _Key(buffer_id=_NO_BUFFER, pid=peer.pid, base=address, length=1, pid_namespace=peer.pid_namespace)
            library.uct_cuda_ipc_map_memhandle(ctypes.byref(key), device, ctypes.byref(mapped), _LOG_FATAL)
    return True


def _loaded_library() -> ctypes.CDLL | None:
    """UCX's, as it is in this process already; nothing is loaded."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if Path(path).name.startswith(_LIBRARY):
            library = open_library(path, os.RTLD_NOLOAD)
            return library if hasattr(library, "uct_cuda_ipc_map_memhandle") else None
    return None


def open_library(path: str, flags: int = 0) -> ctypes.CDLL:
    """Lazily, as UCX does itself: ctypes would want every symbol at once, and an older driver lacks some."""
    dlopen = ctypes.CDLL(None).dlopen
    dlopen.restype, dlopen.argtypes = ctypes.c_void_p, (ctypes.c_char_p, ctypes.c_int)
    return ctypes.CDLL(path, handle=dlopen(path.encode(), os.RTLD_LAZY | flags))


@cache
def _device_count() -> int:
    count = ctypes.c_int()
    if ctypes.CDLL("libcuda.so.1").cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return min(count.value, _DEVICES_MAX)
