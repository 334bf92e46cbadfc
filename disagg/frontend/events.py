"""Server-sent events that have a name, as Responses and Messages send them.

Way:   a form's fields -> [event] -> bytes of one event, its type also inside its data
"""

from __future__ import annotations

from typing import Any

from disagg.frontend.responses import encode


def event(kind: str, **fields: Any) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + encode({"type": kind, **fields}) + b"\n\n"
