"""Moves this process, and all it starts from then on, into a network namespace that has only `lo`.

What comes from elsewhere then reaches nothing but this run, and nothing reaches it. Call it from the main thread before
other threads live: a namespace is a thread's. Without root it takes a user namespace too, where the kernel allows that.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from pathlib import Path

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 0x1


class NotConfined(Exception):
    """Nothing was started."""


def confine() -> None:
    user, group = os.getuid(), os.getgid()
    flags = _CLONE_NEWNET if user == 0 else _CLONE_NEWNET | _CLONE_NEWUSER
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags):
        why = os.strerror(ctypes.get_errno())
        raise NotConfined(f"this kernel gives us no network namespace: {why}; run as root, or allow user namespaces")
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
    seen = [name for _, name in socket.if_nameindex()]
    if seen != ["lo"]:
        raise NotConfined(f"the network namespace has more than lo: {', '.join(seen)}")
