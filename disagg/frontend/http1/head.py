"""A request's head: bytes to a Head, by RFC 9112's grammar and nothing beyond it.

Way:   Connection -> [parse_head] -> Call
In:    the bytes from a request line to the empty line, complete, within the limits
Out:   a Head: where the body ends is certain
Fails: BadRequest with 400, 414, 417, 431, 501 or 505; the connection closes after it. What two parsers could read in
       two ways (a fold, a bare CR or LF, a space before a colon, two lengths, a length beside a coding) is refused
"""

from __future__ import annotations

import re
from urllib.parse import unquote

import msgspec

from disagg.errors import BadRequest
from disagg.frontend.http1.limits import Limits

Field = tuple[bytes, bytes]

METHOD_BYTES_MAX = 32
DIGITS_MAX = 18  # of a length: below 2^63 for every parser on the way

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_VALUE = rb"[\t\x20-\x7e\x80-\xff]*"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])\r\n")
FIELD_LINES = re.compile(rb"(?:" + _TOKEN + rb":" + _VALUE + rb"\r\n)*")
_FIELD = re.compile(rb"([^:]+):[\t ]*([^\r]*[^\r\t ]|)[\t ]*\r\n")
_HOST = re.compile(rb"(?:[A-Za-z0-9\-._~%!$&'()*+;=]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_ABSOLUTE = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?://([^/?#@]+)(/[^?#]*)?(\?[^#]*)?")
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,%d}" % (DIGITS_MAX - 1))
_BARE_LF = re.compile(rb"(?<!\r)\n")
_FIRST_BYTE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z\r]")
_SPECIAL = frozenset((b"host", b"content-length", b"transfer-encoding", b"connection", b"expect"))


class Head(msgspec.Struct):
    method: str
    path: str  # decoded
    query: bytes  # as it came, without its question mark
    fields: list[Field]  # names in lower case
    minor: int  # of HTTP/1.x: 0 or 1
    length: int  # of the body, in bytes; -1: chunked
    keeps_alive: bool
    expects_continue: bool


def check_beginning(data: bytes | bytearray, known: int, limits: Limits) -> None:
    """Refuses what can no longer become a head, before its end is there: its sender may never send one. `known` bytes
    were looked at before."""
    if not _FIRST_BYTE.match(data):
        raise _bad("this is no HTTP/1.1 request line (TLS, a proxy's preamble, or another protocol?)")
    start = empty_line(data)
    line_end = data.find(b"\n", start)
    if line_end < 0:
        if data.find(b" ", start, start + METHOD_BYTES_MAX + 1) < 0 and len(data) - start > METHOD_BYTES_MAX:
            raise _no_such_method()
        if len(data) - start > METHOD_BYTES_MAX + limits.target_bytes:
            raise BadRequest(None, "target_too_long", _at_most("the request target", limits.target_bytes), 414)
        return
    if line_end >= known and _REQUEST_LINE.match(data, start) is None:
        raise _bad_request_line(bytes(data[start : line_end + 1]))
    if _BARE_LF.search(data, known):
        raise _bad("a line ends in LF alone; end lines in CRLF")
    if len(data) - start > limits.head_bytes:
        raise BadRequest(None, "head_too_large", _at_most("the head", limits.head_bytes), 431)


def parse_head(data: bytes, limits: Limits) -> Head:
    """`data` ends with the empty line."""
    start = empty_line(data)
    line = _REQUEST_LINE.match(data, start)
    if line is None:
        raise _bad_request_line(data[start : data.find(b"\n", start) + 1])
    method, target, major, minor = line.groups()
    if len(method) > METHOD_BYTES_MAX:
        raise _no_such_method()
    if len(target) > limits.target_bytes:
        raise BadRequest(None, "target_too_long", _at_most("the request target", limits.target_bytes), 414)
    if major != b"1":
        raise BadRequest(None, "http_version", "HTTP/1.1 and HTTP/1.0 are spoken here", 505)
    if len(data) - start > limits.head_bytes:
        raise BadRequest(None, "head_too_large", _at_most("the head", limits.head_bytes), 431)
    end = len(data) - 2
    if FIELD_LINES.fullmatch(data, line.end(), end) is None:
        raise _bad_field(data[line.end() : end])
    fields = [(name.lower(), value) for name, value in _FIELD.findall(data, line.end(), end)]
    if len(fields) > limits.fields:
        raise BadRequest(None, "head_too_large", f"more than {limits.fields} header fields", 431)
    special: dict[bytes, list[bytes]] = {}
    for name, value in fields:
        if name in _SPECIAL:
            special.setdefault(name, []).append(value)
    is_old = minor == b"0"
    path, query = _target(method, target, fields)
    _check_host(special.get(b"host", []), is_old)
    options = {option.strip().lower() for value in special.get(b"connection", ()) for option in value.split(b",")}
    length = _length(special.get(b"content-length", []), special.get(b"transfer-encoding", []), is_old)
    return Head(
        method=method.decode(),
        path=unquote(path.decode()) if b"%" in path else path.decode(),
        query=query,
        fields=fields,
        minor=0 if is_old else 1,
        length=length,
        keeps_alive=not is_old and b"close" not in options,
        expects_continue=_expects_continue(special.get(b"expect", []), is_old) and length != 0,
    )


def _target(method: bytes, target: bytes, fields: list[Field]) -> tuple[bytes, bytes]:
    """(path, query). Upgrades and tunnels are not offered: CONNECT is refused, `upgrade` fields are passed over."""
    if method == b"CONNECT":
        raise BadRequest(None, "unknown_method", "there are no tunnels here", 501)
    if b"#" in target:
        raise _bad("a request target has no fragment")
    if target.startswith(b"/"):
        path, _, query = target.partition(b"?")
        return path, query
    if target == b"*" and method == b"OPTIONS":
        return target, b""
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None or not _HOST.fullmatch(absolute[1]):
        raise _bad("the request target must be a path, such as /v1/models")
    # RFC 9112, 3.2.2: its authority stands in place of the Host field
    fields[:] = [(name, absolute[1] if name == b"host" else value) for name, value in fields]
    return absolute[2] or b"/", (absolute[3] or b"?")[1:]


def _check_host(hosts: list[bytes], is_old: bool) -> None:
    if len(hosts) > 1 or (not hosts and not is_old):
        raise _bad(f"{len(hosts)} Host fields; send one")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise _bad("the Host field names no host")


def _length(lengths: list[bytes], codings: list[bytes], is_old: bool) -> int:
    if codings:
        if lengths:
            raise _bad("Content-Length and Transfer-Encoding in one request: where the body ends would be a guess")
        if is_old:
            raise _bad("HTTP/1.0 has no Transfer-Encoding")
        if len(codings) == 1 and codings[0].lower() == b"chunked":
            return -1
        known = b",".join(codings).lower().replace(b" ", b"").split(b",")
        if known[-1] != b"chunked" or known.count(b"chunked") > 1 or not all(known):
            raise _bad("Transfer-Encoding must be `chunked`")
        raise BadRequest(None, "transfer_coding", "the one transfer coding spoken here is `chunked`", 501)
    if not lengths:
        return 0
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
        raise _bad("Content-Length must be one decimal number")
    return int(lengths[0])


def _expects_continue(expectations: list[bytes], is_old: bool) -> bool:
    if is_old or not expectations:
        return False
    if len(expectations) > 1 or expectations[0].lower() != b"100-continue":
        raise BadRequest(None, "expectation", "the one expectation that can be met is `100-continue`", 417)
    return True


def empty_line(data: bytes | bytearray) -> int:
    """RFC 9112, 2.2: old clients send an empty line after a body. Where the request line begins."""
    return 2 if data.startswith(b"\r\n") else 0


def _no_such_method() -> BadRequest:
    return BadRequest(None, "unknown_method", _at_most("the method", METHOD_BYTES_MAX), 501)


def _bad_request_line(line: bytes) -> BadRequest:
    words = line.rstrip(b"\r\n").split(b" ")
    if len(words) == 3 and re.fullmatch(rb"HTTP/[02-9]\.[0-9]", words[2]):
        return BadRequest(None, "http_version", "HTTP/1.1 and HTTP/1.0 are spoken here", 505)
    return _bad("this is no HTTP/1.1 request line: METHOD, one space, target, one space, HTTP/1.1, CRLF")


def _bad_field(lines: bytes) -> BadRequest:
    """Says which of the lines is wrong, by its number: its text may be a secret."""
    for number, line in enumerate(lines.split(b"\r\n"), 1):
        if line.startswith((b" ", b"\t")):
            return _bad(f"header line {number} begins with a space: a folded line, which HTTP/1.1 has given up")
        if line and FIELD_LINES.fullmatch(line + b"\r\n") is None:
            return _bad(f"header line {number} is none: a name, a colon, a value without control characters, CRLF")
    return _bad("the header lines are none")


def _at_most(what: str, limit_bytes: int) -> str:
    return f"{what} is larger than the limit of {limit_bytes} bytes"


def _bad(what: str) -> BadRequest:
    return BadRequest(None, "malformed_request", what)
