"""A TCP port nobody listens on now, for demos, tests and benchmarks (engines get theirs from their Nursery)."""

from __future__ import annotations

import socket


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
