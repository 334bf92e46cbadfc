"""Memory that a process frees stays its own: what holds the next long body is not fetched anew, page by page.

Way:   [keep_freed_memory], at the start of a frontend, of its readers and of an engine's host
Why:   glibc gives freed memory back as soon as some 256 kB of it lie together, and the next copy of a prompt of 400 kB
       costs 200 page faults: on a virtual machine a millisecond of the event loop, where the copying costs 0.04
Cost:  up to 2 * KEPT_BYTES that lie free. glibc comes there by itself with the first body of that size
"""

from __future__ import annotations

KEPT_BYTES = 16 << 20  # above what a client's body may have (the default is 8 MiB)


def keep_freed_memory() -> None:
    """glibc takes the largest block that was mapped and freed for its measure (mallopt(3), M_MMAP_THRESHOLD); no page
    of this one is touched. Elsewhere it does nothing."""
    bytes(KEPT_BYTES)
