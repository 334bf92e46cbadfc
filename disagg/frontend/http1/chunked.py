"""A chunked body, as it comes in: strict, with limits on all that is not content (RFC 9112, 7.1).

Fails: BadRequest (400): a size that is none, a chunk longer than it said, extensions, trailers or a number of small
       chunks that no client needs
"""

from __future__ import annotations

import re

from disagg.errors import BadRequest
from disagg.frontend.http1.head import FIELD_LINES

LINE_BYTES_MAX = 256  # of a chunk's size and its extensions
EXTENSION_BYTES_MAX = 16 << 10  # of a body
TRAILER_BYTES_MAX = 8 << 10
SMALL_CHUNKS_MAX = 4096  # beyond one for each SMALL_BYTES: each costs the event loop a microsecond
SMALL_BYTES = 256

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'
_SIZE = rb"([0-9A-Fa-f]{1,15})((?:[\t ]*;[\t ]*" + _TOKEN + rb"(?:=(?:" + _TOKEN + rb"|" + _QUOTED + rb"))?)*)\r\n"
_FIRST, _NEXT = re.compile(_SIZE), re.compile(rb"\r\n" + _SIZE)


class Chunked:
    """`feed` takes what came; it keeps no content."""

    def __init__(self) -> None:
        self._size = 0  # bytes of content so far
        self._left = 0  # bytes of the running chunk
        self._line = _FIRST
        self._rest = b""  # of a line that is not complete
        self._is_last = False
        self._chunks = self._extension_bytes = 0

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """The content in it, and what follows the body; None while the body goes on."""
        parts: list[bytes] = []
        data, at = self._rest + data if self._rest else data, 0
        self._rest = b""
        while not self._is_last:
            if self._left:
                part = data[at : at + self._left]
                parts.append(part)
                self._size += len(part)
                self._left -= len(part)
                at += len(part)
                if self._left:
                    return b"".join(parts), None
            line = self._line.match(data, at)
            if line is None:
                self._keep(data[at:])
                return b"".join(parts), None
            at = line.end()
            self._begin(int(line[1], 16), len(line[2]))
        return b"".join(parts), self._trailers(data[at:])

    def _begin(self, size: int, extension_bytes: int) -> None:
        self._line = _NEXT
        self._left, self._is_last = size, size == 0
        self._chunks += 1
        self._extension_bytes += extension_bytes
        if self._chunks > SMALL_CHUNKS_MAX + self._size // SMALL_BYTES:
            raise _bad(f"more than {SMALL_CHUNKS_MAX} chunks of less than {SMALL_BYTES} bytes")
        if self._extension_bytes > EXTENSION_BYTES_MAX:
            raise _bad(f"more than {EXTENSION_BYTES_MAX} bytes of chunk extensions")

    def _keep(self, rest: bytes) -> None:
        """A line without its end; refused as soon as it cannot become one."""
        begin = 2 if self._line is _NEXT else 0
        if not b"\r\n".startswith(rest[:begin]):
            raise _bad("a chunk is longer than it said")
        line = rest[begin:]
        if b"\n" in line or len(line) > LINE_BYTES_MAX or (line and not line[:1].isalnum()):
            raise _bad("a chunk's size is none: hexadecimal digits, extensions, CRLF")
        self._rest = rest

    def _trailers(self, data: bytes) -> bytes | None:
        """They are read past: nothing in them may change what the head said."""
        lines = FIELD_LINES.match(data)
        assert lines is not None  # it matches the empty string, too
        end = lines.end()
        if data.startswith(b"\r\n", end):
            return data[end + 2 :]
        if len(data) > TRAILER_BYTES_MAX:
            raise _bad(f"more than {TRAILER_BYTES_MAX} bytes of trailers")
        if b"\n" in data[end:]:
            raise _bad("what follows the last chunk is no trailer")
        self._rest = data
        return None


def _bad(what: str) -> BadRequest:
    return BadRequest(None, "malformed_body", what)
