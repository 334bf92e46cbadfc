"""Refusals of the chat endpoint, in the names that a client of another API sent.

Way:   BadRequest about a translated body -> [renamed] -> BadRequest about the client's own
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from disagg.errors import BadRequest

_ROOT = re.compile(r"[^.\[]*")


def renamed(error: BadRequest, names: Mapping[str, str]) -> BadRequest:
    """`names`: a chat field -> the client's. What stood below it (messages[3].content) stands elsewhere in his body:
    the field alone is named."""
    root = _ROOT.match(error.param or "")
    param = names.get(root.group(), error.param) if root else error.param
    message = error.message
    for old, new in names.items():
        message = re.sub(rf"(?<='){old}(?:[.\[][^']*)?(?=')|\b{old}(?= = )", new, message)
    return BadRequest(param, error.code, message, error.http_status)
