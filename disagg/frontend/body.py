"""A body's bytes to JSON. Where they are not JSON, the error says what they look like; the parser names only a byte.

Way:   body -> [decode_body] -> request_body.py
In:    bytes below the body limit, of any content type: curl says form data of what is JSON
Fails: BadRequest: 415 for an encoded body, before it is read; 400 with what it looks like
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from disagg.errors import BadRequest
from disagg.fields import is_deeper
from disagg.frontend.exchange import Exchange

UTF_8_MARK = b"\xef\xbb\xbf"
SMALL_BYTES_MAX = 64 << 10  # of a body that is decoded in the event loop whatever it holds
DEPTH_MAX = 512  # of JSON in JSON: beyond some 900, what goes through it by recursion fails
# All up to half of a surrogate pair that stands without its other half.
_WHOLE_CHARACTERS = re.compile(
    rb"(?:[^\\]++"
    rb"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # a whole pair
    rb"|\\(?!u[dD][89a-fA-F][0-9a-fA-F]{2})(?:.|\Z))*+",  # another escape
    re.DOTALL,
)
_PLAIN = (b"", b"identity")

# What a body begins with, what it is, and what would do.
_LOOKS = (
    (rb"\s*\Z", "it is empty", "send a JSON object"),
    (rb"\x1f\x8b|\x28\xb5\x2f\xfd|\x78[\x01\x5e\x9c\xda]", "it looks compressed", "send it as it is"),
    (rb"\xff\xfe|\xfe\xff|.?\0", "it looks like UTF-16 or UTF-32", "send UTF-8"),
    (rb"--[^\r\n]{1,80}\r?\n", "it looks like multipart form data", "send a JSON object as the whole body"),
    (rb"[\w.%\[\]-]{1,80}=", "it looks like form data", "send a JSON object as the whole body"),
    (rb"\s*[\[{]\s*'", "it has names in single quotes", "JSON wants double ones"),
    (rb"'", "it is in single quotes", "a shell that leaves them wants double ones around it"),
)


def check_encoding(exchange: Exchange) -> None:
    said = (exchange.request_header(b"content-encoding") or b"").strip().lower()
    if said not in _PLAIN:
        exchange.answer_headers.append((b"accept-encoding", b"identity"))
        shown = said[:100].decode("latin-1")
        what = f"bodies with Content-Encoding '{shown}' are not read here; send the JSON as it is"
        raise BadRequest(None, "unsupported_content_encoding", what, http_status=415)


def decode_body(data: bytes) -> dict[str, Any]:
    data = data.removeprefix(UTF_8_MARK)
    try:
        body = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadRequest(None, "invalid_json", f"the body is not JSON: {_why_not(data, error)}") from None
    except RecursionError:
        raise BadRequest(None, "invalid_json", "the body is nested too deeply") from None
    if data.count(b"{") + data.count(b"[") > DEPTH_MAX and is_deeper(body, DEPTH_MAX):
        raise BadRequest(None, "invalid_json", f"the body is nested more than {DEPTH_MAX} deep")
    if not isinstance(body, dict):
        raise BadRequest(None, "invalid_type", "the body must be a JSON object")
    return body


def _why_not(data: bytes, error: Exception) -> str:
    for begin, what, would_do in _LOOKS:
        if re.match(begin, data, re.DOTALL):
            return f"{what}; {would_do}"
    try:
        data.decode()
    except UnicodeDecodeError as wrong:
        at = wrong.start
        if data[at] != 0xED:  # of half a character that was written without an escape
            return f"byte {at} is no UTF-8 (0x{data[at]:02x}); send UTF-8"
    else:
        whole = _WHOLE_CHARACTERS.match(data)
        assert whole is not None  # it matches the empty string, too
        if (at := whole.end()) == len(data):
            return str(error)
    what = f"half a character at byte {at} (a lone surrogate)"
    return f"{what}; a text was cut within an emoji, or such: cut it between characters"
