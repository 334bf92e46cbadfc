"""Errors as Anthropic's clients read them.

Way:   RequestError, or OpenAI's error object in the midst of a stream -> [error_body, error_event] -> bytes
"""

from __future__ import annotations

import msgspec

from disagg.errors import BadRequest, RequestError
from disagg.frontend.events import event
from disagg.frontend.responses import encode

_BY_STATUS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
}
_OF_CLIENTS, _OVERLOADED = "invalid_request_error", "overloaded_error"  # Anthropic's and our own words


def error_body(error: RequestError) -> bytes:
    """`where` names hosts and rooms: it stays in our logs. The parameter is named in the message."""
    if error.kind == _OVERLOADED:
        kind = _OVERLOADED
    elif isinstance(error, BadRequest) or error.kind == _OF_CLIENTS:
        kind = _BY_STATUS.get(error.http_status, _OF_CLIENTS)
    else:
        kind = _BY_STATUS.get(error.http_status, "api_error")
    return encode({"type": "error", "error": {"type": kind, "message": error.message}})


def error_event(error: bytes) -> bytes:
    """Of OpenAI's error object as JSON."""
    said = msgspec.json.decode(error)["error"]
    kind = said["type"] if said["type"] in (_OF_CLIENTS, _OVERLOADED) else "api_error"
    return event("error", error={"type": kind, "message": said["message"]})
