"""TCP ports of this machine: one that is free, whether one can be listened on, and a name that one process holds.

Way:   `disagg serve` at once, and node inspection on the frontend's node -> [why_not_bound], told before engines load
       demos, tests and benchmarks -> [free_port] (engines get theirs from their node's agent: PortBlocks, [held_name])
"""

from __future__ import annotations

import socket


def free_port() -> int:
    """One that nobody listens on now, on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def why_not_bound(host: str, port: int) -> OSError | None:
    """None: it can be bound now. The frontend binds it for good."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        return error
    return None


def held_name(name: str) -> int | None:
    """A name in this network namespace, until the file is closed or this process ends; None: another has it."""
    with socket.socket(socket.AF_UNIX) as holder:
        try:
            holder.bind(f"\0{name}")  # an abstract name: nothing in a folder
        except OSError:
            return None
        return holder.detach()
