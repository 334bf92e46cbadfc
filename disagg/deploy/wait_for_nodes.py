"""Waits until a Ray cluster has as many nodes as its scheduler gave; a program for batch scripts.

Usage: python -m disagg.deploy.wait_for_nodes COUNT LIMIT_S
In:    RAY_ADDRESS, and the token where the cluster asks for one
Fails: exit 1 at the deadline, naming the nodes that came
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable

POLL_S = 1.0


def wait_until_joined(
    count: int,
    limit_s: float,
    addresses: Callable[[], list[str]],
    now_s: Callable[[], float],
    sleep: Callable[[float], None],
) -> list[str] | None:
    """Who joined, or None if that were too few at the deadline. `addresses` may raise ConnectionError: no head yet."""
    until_s = now_s() + limit_s
    while True:
        try:
            there = addresses()
        except ConnectionError:
            there = []
        if len(there) >= count:
            return there
        if now_s() >= until_s:
            sys.stderr.write(
                f"ray: {len(there)} of {count} nodes after {limit_s:g} s ({', '.join(there) or 'none'}); see the "
                "output of the others' `ray start`, and whether the first node's port 6379 can be reached from them\n"
            )
            return None
        sleep(POLL_S)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("limit_s", type=float)
    asked = parser.parse_args()
    there = wait_until_joined(asked.count, asked.limit_s, _addresses, time.monotonic, time.sleep)
    if there is None:
        return 1
    sys.stderr.write(f"ray: {len(there)} nodes: {', '.join(sorted(there))}\n")
    return 0


def _addresses() -> list[str]:
    import ray

    if not ray.is_initialized():
        try:
            ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # Ray raises many kinds before its head answers; the deadline tells them apart
            raise ConnectionError(str(error)) from error
    return [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]


if __name__ == "__main__":
    raise SystemExit(main())
