"""Whose program a connection from this machine comes from, as the kernel knows it.

Way:   changes.py -> [is_own_users] -> /proc/net/tcp
In:    the port at the client's end of a connection over loopback
Fails: never; where nothing can be read it is nobody of ours
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
ESTABLISHED = "01"
ROOT = 0


def is_own_users(client_port: int) -> bool:
    """Whether every connection that has this port at its own end is of our user, or root's."""
    users = {uid for table in TABLES for uid in _users(_lines(table), client_port)}
    return bool(users) and users <= {os.getuid(), ROOT}


def _users(lines: Iterable[str], port: int) -> Iterable[int]:
    """Of `sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid …`."""
    for line in lines:
        fields = line.split()
        if len(fields) > 7 and fields[3] == ESTABLISHED and int(fields[1].rpartition(":")[2], 16) == port:
            yield int(fields[7])


def _lines(table: str) -> list[str]:
    try:
        return Path(table).read_text().splitlines()[1:]
    except OSError:
        return []
