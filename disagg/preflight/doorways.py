"""Whether the frontend will be able to listen where it is told to.

Way:   `disagg serve` at once, and [look] on the frontend's node -> told before engines load for minutes
Fails: never; why it cannot is the answer
"""

from __future__ import annotations

import socket


def why_not_bound(host: str, port: int) -> OSError | None:
    """None: it can be bound now. The frontend binds it for good."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        return error
    return None
