"""OpenAI's answers as bytes: whole bodies, and errors. (The chunks of a stream are in sinks.py.)

Way:   an answer, or an error -> [whole, error_body] -> HTTP
Out:   what the `openai` clients expect, field for field (golden bytes in the tests)
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from disagg.errors import BadRequest, RequestError

Kind = Literal["chat", "text"]
# Whole in a JSON string; to a client that ends lines by Unicode's rules (httpx, str.splitlines) the end of an event.
_LINE_ENDS = ((b"\xc2\x85", rb"\u0085"), (b"\xe2\x80\xa8", rb"\u2028"), (b"\xe2\x80\xa9", rb"\u2029"))

# kind: prefix of ids, object of a whole answer, object of a chunk
WORDS: dict[Kind, tuple[str, str, str]] = {
    "chat": ("chatcmpl-", "chat.completion", "chat.completion.chunk"),
    "text": ("cmpl-", "text_completion", "text_completion"),
}


def encode(content: Any) -> bytes:
    """JSON, on one line for everybody."""
    data = msgspec.json.encode(content)
    return data if data.isascii() else one_line(data)


def one_line(data: bytes) -> bytes:
    for end, escaped in _LINE_ENDS:
        if end in data:
            data = data.replace(end, escaped)
    return data


def error_body(error: RequestError) -> bytes:
    """`where` names hosts and rooms: it stays in our logs."""
    param = error.param if isinstance(error, BadRequest) else None
    return encode({"error": {"message": error.message, "type": error.kind, "param": param, "code": error.code}})
