"""How many connections this process may have: its limit of open files, less the files it needs itself."""

from __future__ import annotations

import logging
import resource

log = logging.getLogger(__name__)

RESERVED = 256  # engines, registry, logs, and clients that are told there is no room


def raise_limit() -> None:
    """The soft limit (1,024 in most shells) to the hard one: nothing here uses select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connections_allowed(wanted: int) -> int:
    """Told in the log when open files allow fewer."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if soft == resource.RLIM_INFINITY else min(wanted, max(soft - RESERVED, soft // 2))
    if allowed < wanted:
        log.warning("%d connections at once, not %d: only %d files may be open (ulimit -n)", allowed, wanted, soft)
    return allowed
