"""Whose program a connection from this machine comes from, as the kernel knows it.

Way:   changes.py -> [is_own_users] -> /proc/net/tcp
In:    both ends of a connection over loopback
Fails: never; where its row cannot be found it is nobody of ours

The whole row is looked for: a port alone is that of many connections, from other addresses of loopback too. What its
client has shut down is not ESTABLISHED there, and counts as nobody's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
ESTABLISHED = "01"
ROOT = 0
WORD = 4  # bytes, in the order of this machine

End = tuple[str, int]  # address, port
_End = tuple[IPv4Address | IPv6Address, int]


def is_own_users(client: End, server: End) -> bool:
    """Whether the client's end is of our user, or root's."""
    wanted = _end(*client), _end(*server)
    users = [uid for table in TABLES for uid in _users(_lines(table), wanted)]
    return len(users) == 1 and users[0] in (os.getuid(), ROOT)


def _users(lines: Iterable[str], wanted: tuple[_End, _End]) -> Iterator[int]:
    """Of `sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid …`."""
    port = f":{wanted[0][1]:04X}"
    for line in lines:
        fields = line.split()
        is_open = len(fields) > 7 and fields[3] == ESTABLISHED and fields[1].endswith(port)
        if is_open and (_read(fields[1]), _read(fields[2])) == wanted:
            yield int(fields[7])


def _read(text: str) -> _End:
    address, _, port = text.partition(":")
    octets = bytes.fromhex(address)
    if sys.byteorder == "little":
        octets = b"".join(octets[at : at + WORD][::-1] for at in range(0, len(octets), WORD))
    return _end(str(ip_address(octets)), int(port, 16))


def _end(address: str, port: int) -> _End:
    """An IPv4 address in IPv6's form is the same."""
    found = ip_address(address.partition("%")[0])
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return mapped or found, port


def _lines(table: str) -> list[str]:
    try:
        return Path(table).read_text().splitlines()[1:]
    except OSError:
        return []
