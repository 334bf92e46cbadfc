"""What a connection may take: in size, in time, and all connections together (docs/limits.md, for operators)."""

from __future__ import annotations

from dataclasses import dataclass

KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    head_bytes: int = 32 * KIB
    """Request line and header fields; also what may wait behind a request that runs. More: 431."""
    target_bytes: int = 8 * KIB
    """The request target. More: 414."""
    fields: int = 100
    """Header fields of a request. More: 431."""
    head_s: float = 15.0
    """From a head's first byte to its last. Later: 408."""
    idle_s: float = 75.0
    """Without a request, then it closes: longer than what balancers in front of us keep one (60 s is usual)."""
    requests: int = 10_000
    """On one connection; the last answer says `connection: close`."""
    body_grace_s: float = 30.0
    """A body may take so long, and more as it comes in ..."""
    body_bytes_per_s: float = 64 * KIB
    """... at this rate. Later: 408."""
    held_bytes: int = 256 * MIB
    """Of all connections together: heads, bodies that are not complete, requests that wait behind others. More: 503."""
    connections: int = 10_000
    """At once, where open files allow it. More: the longest idle one closes; if none is idle, the new one gets 503."""
    write_s: float = 60.0
    """A client that takes nothing of an answer for so long is gone."""
    flush_bytes_per_s: float = 16 * KIB
    """An answer that is complete must leave at this rate, after `write_s`."""
    unsent_bytes: int = 256 * MIB
    """Of all connections together: what clients have not taken. More: the largest is dropped."""
    rest_bytes: int = 64 * KIB
    """Of a body that nobody wants: so much is taken in to keep the connection. More: it closes after the answer."""
    linger_s: float = 2.0
    """A client that still sends when its connection closes would see a reset instead of the answer: for so long ..."""
    linger_bytes: int = 32 * MIB
    """... and up to so much is taken in and thrown away."""
    tick_s: float = 1.0
    """How often time limits are looked at."""
