"""TCP ports of this machine, free ones and held ones, and a name that one process holds.

Way:   `disagg serve` at once -> [hold], for its frontends
       node inspection on the frontends' node -> [why_not_bound], told before engines load
       demos, tests and benchmarks -> [free_port] (engines get theirs from their node's agent: PortBlocks, [held_name])
"""

from __future__ import annotations

import socket


def free_port() -> int:
    """One that nobody listens on now, on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def hold(host: str, port: int) -> socket.socket:
    """While it is open the kernel gives this port to nobody who asks for any: Ray, which takes dozens, and connections.
    Whoever names it can listen there. Raises OSError where it cannot be bound."""
    held = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # bound again by who has set it too
        held.bind((host, port))
    except OSError:
        held.close()
        raise
    return held


def why_not_bound(host: str, port: int) -> OSError | None:
    """None: it can be bound now."""
    try:
        hold(host, port).close()
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
