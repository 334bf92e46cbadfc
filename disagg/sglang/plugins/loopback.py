"""SGLang plugin: torch's rendezvous stores listen on the address that they are given: loopback in a deployment for one
machine, else the node's in the cluster.

Way:   entry point of the group `sglang.srt.plugins`, in every process of an engine whose environment says so
Why:   torch's TCPStore listens on all addresses, whatever host it is given, and authenticates nobody: a stranger could
       read and write it. gloo, NCCL and UCX are told by variables instead (cluster/actors.py)
How:   the store is given a socket that listens already
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from typing import Any

ONE_ADDRESS_VARIABLE = "DISAGG_ONE_ADDRESS"
BACKLOG = 512


def activate() -> None:
    if ONE_ADDRESS_VARIABLE not in os.environ:
        return
    import torch.distributed as distributed

    if getattr(distributed.TCPStore, "is_on_one_address", False):
        return  # forked from a process that has done it

    class OneAddressStore(distributed.TCPStore):  # type: ignore[misc]
        is_on_one_address = True

        def __init__(self, host_name: str, port: int, *rest: Any, **said: Any) -> None:
            if said.get("is_master") and said.get("master_listen_fd") is None:
                said["master_listen_fd"] = _listening(host_name, port, may_exist=bool(said.get("multi_tenant")))
            super().__init__(host_name, port, *rest, **said)

    distributed.TCPStore = OneAddressStore
    for name in ("torch.distributed.rendezvous", "sglang.srt.distributed.utils"):
        if hasattr(module := sys.modules.get(name), "TCPStore"):
            module.TCPStore = OneAddressStore  # type: ignore[union-attr]


def _listening(host: str, port: int, *, may_exist: bool) -> int | None:
    """A descriptor for the store to keep; None where this process has a store there already, which it will share."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG).detach()
    except OSError as error:
        if may_exist and error.errno == errno.EADDRINUSE:
            return None
        raise
