"""W3C's trace context, as a client's request brings it.

Way:   `traceparent` of a request's head -> [read_parent] -> tracer.py
Fails: never: what is not valid is as if it had not come, as the recommendation asks
"""

from __future__ import annotations

import re
from typing import NamedTuple

_SAMPLED = 1
_FORM = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class Parent(NamedTuple):
    trace_id: str
    span_id: str
    is_sampled: bool


def read_parent(header: bytes | None) -> Parent | None:
    found = _FORM.fullmatch(header.strip()) if header else None
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == b"ff" or (version == b"00" and more) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    return Parent(trace_id.decode(), span_id.decode(), bool(int(flags, 16) & _SAMPLED))
