"""Requests whose end, or whose meaning, two readers could see in two places; and what is answered to each.

By RFC 9110 and 9112, in our own words and bytes; the choice of cases follows the public corpus Http11Probe (its
smuggling, compliance and malformed suites) and llhttp's tests, with our own beside them. `SMUGGLED` stands wherever a
wrong reader would find another request. An answer of a Case is the status of each final response, in order; after
the last one the connection closes where `closes`, and otherwise the next request on it is answered as usual.
"""

# ruff: noqa: E501 - a table: a case a line
from __future__ import annotations

from dataclasses import dataclass

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


@dataclass(frozen=True)
class Case:
    name: str
    sent: bytes
    statuses: tuple[int, ...]
    closes: bool = True
    body: bytes | None = None  # of the first request, as the app must have got it


def _get(
    line: bytes = b"GET / HTTP/1.1", fields: bytes = b"", host: bytes = b"Host: a\r\n", after: bytes = b""
) -> bytes:
    return line + b"\r\n" + host + fields + b"\r\n" + after


def _post(fields: bytes, body: bytes = b"hello", version: bytes = b"1.1") -> bytes:
    return b"POST / HTTP/%b\r\nHost: a\r\n%b\r\n%b" % (version, fields, body)


def _chunked(body: bytes, fields: bytes = b"") -> bytes:
    return _post(b"Transfer-Encoding: chunked\r\n" + fields, body)


CHUNKED_HELLO = b"5\r\nhello\r\n0\r\n\r\n"
TE, CL5 = b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n"


def _bad(name: str, sent: bytes, status: int = 400) -> Case:
    return Case(name, sent, (status,))


def _good(name: str, sent: bytes, body: bytes = b"", status: int = 200) -> Case:
    return Case(name, sent, (status,), closes=False, body=body)


LENGTHS = [  # RFC 9112, 6.3: one number of digits, or the message is broken
    _good("a length", _post(CL5), b"hello"),
    _good("a length with spaces around it", _post(b"Content-Length:  5 \r\n"), b"hello"),
    _good("a length behind a tab", _post(b"Content-Length:\t5\r\n"), b"hello"),
    _good("a length without a space before it", _post(b"content-length:5\r\n"), b"hello"),
    _good("no length is none", _post(b"", b"")),
    _good("a length of 0", _post(b"Content-Length: 0\r\n", b"")),
    Case("a length of 0, and a body that is the next request", _post(b"Content-Length: 0\r\n", SMUGGLED), (200, 200), False),
    Case("a length of 0, and a body that is no request", _post(b"Content-Length: 0\r\n", b"{}\r\n\r\n"), (200, 400)),
    *[
        _bad(f"a length that is {value!r}", _post(b"Content-Length: " + value + b"\r\n", b"hello" + SMUGGLED))
        for value in (
            b"+5", b"-1", b"-0", b"0x5", b"0o5", b"1_0", b"1 0", b"5, 5", b"5,5,5", b"5, 10", b"005", b"00", b"0200", b"five",
            b"", b"5.0", b"5;", b"5e0", b"\xd9\xa5", b"99999999999999999999", b"9223372036854775808", b"5\x0b", b"\x0c5", b"5\x00",
        )
    ],
    _bad("two lengths that differ", _post(CL5 + b"Content-Length: 10\r\n", b"hello" + SMUGGLED)),
    _bad("two lengths that are equal", _post(CL5 + CL5, b"hello" + SMUGGLED)),
    _good("an underscore makes another field", _post(b"Content_Length: 99\r\n" + CL5), b"hello"),
    _good("a GET may have a body", _get(fields=CL5, after=b"hello"), b"hello"),
    _good("a GET whose body looks like a request", _get(fields=b"Content-Length: %d\r\n" % len(SMUGGLED), after=SMUGGLED), SMUGGLED),
    _good("an OPTIONS whose body looks like a request",
          _get(b"OPTIONS / HTTP/1.1", b"Content-Length: %d\r\n" % len(SMUGGLED), after=SMUGGLED), SMUGGLED),
    _good("a HEAD with a body", _get(b"HEAD / HTTP/1.1", CL5, after=b"hello"), b"hello"),
]  # fmt: skip

CODINGS = [  # RFC 9112, 6.1 and 6.3: `chunked` alone, and never beside a length
    _good("chunked", _chunked(CHUNKED_HELLO), b"hello"),
    _good("chunked, in capitals", _post(b"TRANSFER-ENCODING: CHUNKED\r\n", CHUNKED_HELLO), b"hello"),
    _good("chunked behind a tab", _post(b"Transfer-Encoding:\tchunked\r\n", CHUNKED_HELLO), b"hello"),
    _good("chunked, a space behind it", _post(b"Transfer-Encoding: chunked \r\n", CHUNKED_HELLO), b"hello"),
    *[
        _bad(f"a length beside {coding!r}", _post(first + second, b"0\r\n\r\n" + SMUGGLED))
        for coding in (
            b"chunked", b"Chunked", b"chunked ", b"\tchunked", b"xchunked", b"identity", b", chunked", b"chunked,", b"",
            b"\x0bchunked", b"\x0cchunked", b"chunked\x00", b"chunked;q=1", b'"chunked"', b"chunked, chunked", b"ch\xfcnked",
        )
        for first, second in [
            (b"Content-Length: 6\r\n", b"Transfer-Encoding: " + coding + b"\r\n"),
            (b"Transfer-Encoding: " + coding + b"\r\n", b"Content-Length: 6\r\n"),
        ]
    ],
    _bad("a coding in two fields", _post(TE + b"Transfer-Encoding: identity\r\n", CHUNKED_HELLO)),
    _bad("chunked in two fields", _post(TE + TE, CHUNKED_HELLO)),
    _bad("chunked twice", _post(b"Transfer-Encoding: chunked, chunked\r\n", CHUNKED_HELLO)),
    _bad("chunked is not the last", _post(b"Transfer-Encoding: chunked, gzip\r\n", CHUNKED_HELLO)),
    _bad("an empty member before chunked", _post(b"Transfer-Encoding: , chunked\r\n", CHUNKED_HELLO)),
    _bad("an empty member behind chunked", _post(b"Transfer-Encoding: chunked,\r\n", CHUNKED_HELLO)),
    _bad("no coding", _post(b"Transfer-Encoding:\r\n", CHUNKED_HELLO)),
    _bad("identity", _post(b"Transfer-Encoding: identity\r\n", b"hello")),
    _bad("an unknown coding", _post(b"Transfer-Encoding: xchunked\r\n", CHUNKED_HELLO)),
    _bad("a coding before chunked", _post(b"Transfer-Encoding: gzip, chunked\r\n", CHUNKED_HELLO), 501),
    _bad("chunked with a parameter", _post(b"Transfer-Encoding: chunked;foo=bar\r\n", CHUNKED_HELLO)),
    _bad("chunked on a folded line", _post(b"Transfer-Encoding:\r\n chunked\r\n" + CL5, b"hello" + SMUGGLED)),
    _bad("a folded coding of an OPTIONS", _get(b"OPTIONS / HTTP/1.1", b"Transfer-Encoding:\r\n chunked\r\n" + CL5)),
    _bad("a space before the coding's colon", _post(b"Transfer-Encoding : chunked\r\n" + CL5, b"hello" + SMUGGLED)),
    _bad("a line break before the coding's colon", _post(b"Transfer-Encoding\r\n : chunked\r\n" + CL5)),
    _bad("a coding behind a bare CR", _post(b"X: y\rTransfer-Encoding: chunked\r\n" + CL5)),
    _bad("a coding behind a bare LF", _post(b"X: y\nTransfer-Encoding: chunked\r\n" + CL5)),
    _bad("a coding in HTTP/1.0", _post(TE, CHUNKED_HELLO, b"1.0")),
    _good("an underscore makes another coding field", _post(b"Transfer_Encoding: chunked\r\n" + CL5), b"hello"),
]  # fmt: skip

CHUNKS = [  # RFC 9112, 7.1
    _good("two chunks", _chunked(b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"), b"hello world"),
    _good("no chunk", _chunked(b"0\r\n\r\n")),
    _good("a size in capitals, and zeros before it", _chunked(b"000A\r\nhelloworld\r\n000\r\n\r\n"), b"helloworld"),
    _good("an extension", _chunked(b"5;ext=1\r\nhello\r\n0\r\n\r\n"), b"hello"),
    _good("an extension with a quoted value", _chunked(b'5;a="b;\\"c"\r\nhello\r\n0;last\r\n\r\n'), b"hello"),
    _good("a trailer", _chunked(b"5\r\nhello\r\n0\r\nX-Check: 1\r\n\r\n"), b"hello"),
    *[
        _good(f"a trailer that names {name.decode()}", _chunked(b"5\r\nhello\r\n0\r\n" + name + b": 50\r\n\r\n"), b"hello")
        for name in (b"Content-Length", b"Transfer-Encoding", b"Host", b"Authorization", b"Content-Type")
    ],
    Case("a request behind the last chunk", _chunked(CHUNKED_HELLO + _get(b"GET /second HTTP/1.1")), (200, 200), False, b"hello"),
    *[
        _bad(f"a chunk's size that is {size!r}", _chunked(size + b"\r\nhello\r\n0\r\n\r\n" + SMUGGLED))
        for size in (
            b"0x5", b"+5", b"-5", b"5_", b"0_5", b" 5", b"5 ", b"\t5", b"5\t", b"5;", b"5;[", b"5; ;", b"5;a=", b"5;a\x00", b"5;a\rb",
            b"", b"g", b"5,5", b"5\x0b", b"ffffffffffffffff5", b"10000000000000005", b"5\r", b'5;a="b',
        )
    ],
    _bad("a chunk's size ends in a bare LF", _chunked(b"5\nhello\r\n0\r\n\r\n" + SMUGGLED)),
    _bad("a chunk's size ends in a bare CR", _chunked(b"5\rhello\r\n0\r\n\r\n" + SMUGGLED)),
    _bad("an extension ends in a bare LF", _chunked(b"5;a\nhello\r\n0\r\n\r\n" + SMUGGLED)),
    _bad("a chunk ends in a bare LF", _chunked(b"5\r\nhello\n0\r\n\r\n" + SMUGGLED)),
    _bad("a chunk ends in a bare CR", _chunked(b"5\r\nhello\r0\r\n\r\n" + SMUGGLED)),
    _bad("a chunk does not end", _chunked(b"5\r\nhello0\r\n\r\n" + SMUGGLED)),
    _bad("a chunk is longer than it says", _chunked(b"5\r\nhello!!\r\n0\r\n\r\n" + SMUGGLED)),
    _bad("a chunk is shorter than it says", _chunked(b"7\r\nhello\r\n0\r\n\r\n" + SMUGGLED)),
    _bad("the last chunk ends in a bare LF", _chunked(b"5\r\nhello\r\n0\n\r\n" + SMUGGLED)),
    _bad("trailers end in a bare LF", _chunked(b"5\r\nhello\r\n0\r\n\n" + SMUGGLED)),
    _bad("a trailer ends in a bare LF", _chunked(b"5\r\nhello\r\n0\r\nX: y\n\r\n" + SMUGGLED)),
    _bad("a trailer is folded", _chunked(b"5\r\nhello\r\n0\r\nX: y\r\n z\r\n\r\n" + SMUGGLED)),
    _bad("a trailer has no colon", _chunked(b"5\r\nhello\r\n0\r\nXy\r\n\r\n" + SMUGGLED)),
    _bad("an extension of 64 KiB", _chunked(b"5;a=" + b"b" * 65536 + b"\r\nhello\r\n0\r\n\r\n")),
    _bad("many extensions", _chunked(b"".join(b"1;a=%b\r\nx\r\n" % (b"b" * 200) for _ in range(100)) + b"0\r\n\r\n")),
    _bad("trailers without an end", _chunked(b"5\r\nhello\r\n0\r\n" + b"X-T: yyyyyyyyyyyyyyyyyyyyyy\r\n" * 600)),
    _bad("a trailer without an end", _chunked(b"5\r\nhello\r\n0\r\nX: " + b"y" * 10000)),
    _good("a thousand chunks of a byte", _chunked(b"1\r\nx\r\n" * 1000 + b"0\r\n\r\n"), b"x" * 1000),
    _bad("ten thousand chunks of a byte", _chunked(b"1\r\nx\r\n" * 10000 + b"0\r\n\r\n")),
]  # fmt: skip

LINES = [  # RFC 9112, 2.2, 3 and 5
    _good("a request", _get()),
    _good("a query", _get(b"GET /?a=b?c HTTP/1.1")),
    _good("an empty line before it", b"\r\n" + _get()),
    _bad("a bare LF before it", b"\n" + _get()),
    _bad("three empty lines before it", b"\r\n\r\n\r\n" + _get()),
    _bad("a line of spaces before it", b"   \r\n" + _get()),
    _bad("a space before it", b" " + _get()),
    _bad("the request line ends in a bare LF", b"GET / HTTP/1.1\nHost: a\r\n\r\n" + SMUGGLED),
    _bad("all lines end in a bare LF", b"GET / HTTP/1.1\nHost: a\n\n"),
    _bad("a header line ends in a bare LF", b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n" + SMUGGLED),
    _bad("the head ends in a bare LF", b"GET / HTTP/1.1\r\nHost: a\r\n\n" + SMUGGLED),
    _bad("lines end in a bare CR", b"GET / HTTP/1.1\rHost: a\r\r" + b"\r\n"),
    _bad("a bare CR in a value", _get(fields=b"X: a\rb\r\n")),
    _bad("a CR more at a line's end", b"GET / HTTP/1.1\r\r\nHost: a\r\n\r\n"),
    _bad("a folded line", _get(fields=b"X: a\r\n b\r\n")),
    _bad("a line folded by a tab", _get(fields=b"X: a\r\n\tb\r\n")),
    _bad("a folded line of a space alone", _get(fields=b"X: a\r\n \r\n")),
    _bad("a space before the first header", b"GET / HTTP/1.1\r\n Host: a\r\n\r\n"),
    _bad("a space before a colon", _get(fields=b"X : y\r\n")),
    _bad("a tab before a colon", _get(fields=b"X\t: y\r\n")),
    _bad("no name", _get(fields=b": y\r\n")),
    _bad("no colon", _get(fields=b"Xy\r\n")),
    _bad("a name in brackets", _get(fields=b"[X]: y\r\n")),
    _bad("a name with a space", _get(fields=b"X Y: y\r\n")),
    _bad("a name that is not ASCII", _get(fields="Xë: y\r\n".encode())),
    _bad("NUL in a name", _get(fields=b"X\x00: y\r\n")),
    _bad("NUL in a value", _get(fields=b"X: a\x00b\r\n")),
    _bad("control characters in a value", _get(fields=b"X: a\x01\x02b\r\n")),
    _bad("DEL in a value", _get(fields=b"X: a\x7fb\r\n")),
    _bad("NUL in a cookie", _get(fields=b"Cookie: a=\x00\r\n")),
    _good("a value that is not ASCII", _get(fields=b"X: \xe9\xff\r\n")),
    _good("an empty value", _get(fields=b"X:\r\nY: \t \r\n")),
    _good("cookies that make no sense", _get(fields=b"Cookie: ===;;;\r\nCookie: a\r\n")),
    _bad("no target", b"GET  HTTP/1.1\r\nHost: a\r\n\r\n"),
    _bad("no target and one space", b"GET HTTP/1.1\r\nHost: a\r\n\r\n"),
    _bad("two spaces before the target", _get(b"GET  / HTTP/1.1")),
    _bad("two spaces behind the target", _get(b"GET /  HTTP/1.1")),
    _bad("tabs between the words", _get(b"GET\t/\tHTTP/1.1")),
    _bad("a space in the target", _get(b"GET /a b HTTP/1.1")),
    _bad("a space behind the version", _get(b"GET / HTTP/1.1 ")),
    _bad("NUL in the target", _get(b"GET /\x00 HTTP/1.1")),
    _bad("a target that is not ASCII", _get("GET /é HTTP/1.1".encode())),
    _bad("overlong UTF-8 in the target", _get(b"GET /\xc0\xaf HTTP/1.1")),
    _bad("a fragment in the target", _get(b"GET /a#b HTTP/1.1")),
    _good("a backslash in the target is no slash", _get(b"GET /a\\b HTTP/1.1")),
    _good("an encoded NUL and line break stay in the path", _get(b"GET /%00%0d%0a HTTP/1.1")),
    _good("a target of 7,000 bytes", _get(b"GET /" + b"a" * 7000 + b" HTTP/1.1")),
    _bad("a target of 9,000 bytes", _get(b"GET /" + b"a" * 9000 + b" HTTP/1.1"), 414),
    _bad("a target of 100,000 bytes", _get(b"GET /" + b"a" * 100_000 + b" HTTP/1.1"), 414),
    _bad("a target without an end", b"GET /" + b"a" * 20_000, 414),
    _good("100 header fields", _get(fields=b"X: y\r\n" * 99)),
    _bad("101 header fields", _get(fields=b"X: y\r\n" * 100), 431),
    _bad("10,000 tiny header fields", _get(fields=b"X:\r\n" * 10_000), 431),
    _good("a value of 30,000 bytes", _get(fields=b"X: " + b"y" * 30_000 + b"\r\n")),
    _bad("a value of 40,000 bytes", _get(fields=b"X: " + b"y" * 40_000 + b"\r\n"), 431),
    _bad("a name of 40,000 bytes", _get(fields=b"X" * 40_000 + b": y\r\n"), 431),
    _bad("a head without an end", b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 100_000, 431),
]  # fmt: skip

METHODS = [  # RFC 9110, 9
    _good("HEAD", _get(b"HEAD / HTTP/1.1")),
    _good("a method nobody knows is the app's", _get(b"FOO / HTTP/1.1")),
    _good("a method in small letters is another one", _get(b"get / HTTP/1.1")),
    _good("TRACE is the app's", _get(b"TRACE / HTTP/1.1")),
    _bad("a method with a colon", _get(b"GE:T / HTTP/1.1")),
    _bad("a method with NUL", _get(b"GE\x00T / HTTP/1.1")),
    _bad("a method that is not ASCII", _get("GÉT / HTTP/1.1".encode())),
    _bad("a method of 40 bytes", _get(b"A" * 40 + b" / HTTP/1.1"), 501),
    _bad("a method of 100,000 bytes", _get(b"A" * 100_000 + b" / HTTP/1.1"), 501),
    _bad("CONNECT", _get(b"CONNECT a:443 HTTP/1.1", after=SMUGGLED), 501),
    _bad("CONNECT with a path", _get(b"CONNECT / HTTP/1.1", after=SMUGGLED), 501),
    _good("OPTIONS *", _get(b"OPTIONS * HTTP/1.1")),
    _bad("GET *", _get(b"GET * HTTP/1.1")),
    _good("an absolute target", _get(b"GET http://a/b?c HTTP/1.1")),
    _good("an absolute target without a path", _get(b"GET http://a HTTP/1.1")),
    _good("an absolute target of another host: it stands in Host's place", _get(b"GET http://b/ HTTP/1.1")),
    _bad("an absolute target with a user", _get(b"GET http://u@a/ HTTP/1.1")),
    _bad("an absolute target without a host", _get(b"GET http:///b HTTP/1.1")),
    _bad("an absolute target of another scheme", _get(b"GET ftp://a/ HTTP/1.1")),
    _bad("a host alone", _get(b"GET a:80 HTTP/1.1")),
    _bad("a path without its slash", _get(b"GET v1/models HTTP/1.1")),
]  # fmt: skip

VERSIONS = [  # RFC 9112, 2.3
    Case("HTTP/1.0 closes", _get(b"GET / HTTP/1.0"), (200,)),
    Case("HTTP/1.0 needs no Host", b"GET / HTTP/1.0\r\n\r\n", (200,)),
    Case("HTTP/1.0 that wants to be kept closes", _get(b"GET / HTTP/1.0", b"Connection: keep-alive\r\n", after=SMUGGLED), (200,)),
    Case("HTTP/1.0 with a body", _post(CL5, b"hello", b"1.0"), (200,), body=b"hello"),
    Case("HTTP/1.0 gets no 100", _post(CL5 + b"Expect: 100-continue\r\n", b"hello", b"1.0"), (200,), body=b"hello"),
    _good("HTTP/1.2 is read as 1.1", _get(b"GET / HTTP/1.2")),
    *[_bad(f"HTTP/{version}", _get(b"GET / HTTP/" + version.encode()), 505) for version in ("0.9", "2.0", "3.0", "9.9")],
    *[
        _bad(f"a version that is {version!r}", _get(b"GET / " + version))
        for version in (
            b"HTTP/1", b"HTTP/01.01", b"HTTP/1.10", b"HTTP/ 1.1", b"http/1.1", b"HTTP/1.a", b"HTTP1.1", b"HTTPS/1.1", b"HTTP/1,1",
            b"HTTP/-1.1", b"HTTP/1.1\x00", b"JUNK", b"HTTP/\xb1.1", b"ICY/1.1",
        )
    ],
    _bad("HTTP/0.9", b"GET /\r\n"),
    _bad("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00", 505),
    _bad("a TLS ClientHello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256))),
    _bad("a PROXY line, version 1", b"PROXY TCP4 10.0.0.1 10.0.0.2 5 6\r\n" + _get()),
    _bad("a PROXY header, version 2", b"\r\n\r\n\x00\r\nQUIT\n!\x11\x00\x0c" + bytes(12) + _get()),
    _bad("an SSH client", b"SSH-2.0-OpenSSH_9.6\r\n"),
    _bad("a Redis command", b"*1\r\n$4\r\nPING\r\n"),
    _bad("rubbish", bytes(range(128, 256)) * 4),
    _bad("zeros", bytes(100)),
]  # fmt: skip

HOSTS = [  # RFC 9112, 3.2
    _bad("no Host", _get(host=b"")),
    _bad("two Hosts", _get(fields=b"Host: b\r\n")),
    _bad("the same Host twice", _get(fields=b"Host: a\r\n")),
    *[
        _bad(f"a Host that is {host!r}", _get(host=b"Host: " + host + b"\r\n"))
        for host in (b"", b"u@a", b"a/b", b"a, b", b"a b", b"a:b", b"a:123456", b"[::1", b"::1", b"a?b", b"a#b", b"http://a", b"\xe9")
    ],
    *[
        _good(f"a Host that is {host.decode()}", _get(host=b"Host: " + host + b"\r\n"))
        for host in (b"a:8000", b"[::1]", b"[::1]:8000", b"127.0.0.1", b"my_service.default.svc", b"a:")
    ],
    _bad("two Hosts in HTTP/1.0", _get(b"GET / HTTP/1.0", b"Host: b\r\n")),
]  # fmt: skip

H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
SOCKET = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: %b\r\n"

UPGRADES = [  # RFC 9110, 7.8: a server may pass over Upgrade, and then the request is an ordinary one
    _good("h2c, as Java's client sends it", _post(H2C + CL5), b"hello"),
    _good("h2c, chunked", _post(H2C + TE, CHUNKED_HELLO), b"hello"),
    _good("h2c, whose body looks like a request", _post(H2C + b"Content-Length: %d\r\n" % len(SMUGGLED), SMUGGLED), SMUGGLED),
    _good("h2c of a GET", _get(fields=H2C)),
    _good("a web socket", _get(fields=SOCKET % b"13")),
    _good("a web socket of an unknown version", _get(fields=SOCKET % b"99")),
    _good("a web socket with POST", _post(SOCKET % b"13" + CL5), b"hello"),
    _good("Upgrade without Connection", _get(fields=b"Upgrade: websocket\r\n")),
    _good("Connection without Upgrade", _post(b"Connection: upgrade\r\n" + CL5), b"hello"),
    _good("an unknown upgrade", _post(b"Connection: Upgrade\r\nUpgrade: foo/2, TLS/1.2\r\n" + CL5), b"hello"),
    Case("an upgrade in HTTP/1.0", _post(b"Connection: Upgrade\r\nUpgrade: h2c\r\n" + CL5, b"hello", b"1.0"), (200,), body=b"hello"),
    Case("an upgrade that closes", _post(b"Connection: close, Upgrade\r\nUpgrade: h2c\r\n" + CL5, b"hello" + SMUGGLED), (200,),
         body=b"hello"),
]  # fmt: skip

EXPECTATIONS = [  # RFC 9110, 10.1.1
    _good("100-continue", _post(CL5 + b"Expect: 100-continue\r\n"), b"hello"),
    _good("100-Continue", _post(CL5 + b"Expect: 100-Continue\r\n"), b"hello"),
    _good("100-continue without a body", _get(fields=b"Expect: 100-continue\r\n")),
    _good("100-continue, chunked", _chunked(CHUNKED_HELLO, b"Expect: 100-continue\r\n"), b"hello"),
    *[
        _bad(f"an expectation of {value!r}", _post(CL5 + b"Expect: " + value + b"\r\n", b"hello" + SMUGGLED), 417)
        for value in (b"200-ok", b"", b"100-continue, 100-continue", b"100-continue; q=1", b"y 100-continue")
    ],
    _bad("two expectations", _post(CL5 + b"Expect: 100-continue\r\nExpect: 100-continue\r\n", b"hello" + SMUGGLED), 417),
]  # fmt: skip

CONNECTIONS = [  # RFC 9112, 9
    Case("close", _get(fields=b"Connection: close\r\n", after=SMUGGLED), (200,)),
    Case("close in a list", _get(fields=b"Connection: keep-alive, Close\r\n", after=SMUGGLED), (200,)),
    Case("close in a second field", _get(fields=b"Connection: x\r\nConnection: CLOSE\r\n", after=SMUGGLED), (200,)),
    _good("keep-alive", _get(fields=b"Connection: keep-alive\r\nKeep-Alive: 5\r\n")),
    _good("a field that Connection names is still read", _post(b"Connection: content-length, host\r\n" + CL5), b"hello"),
    Case("three requests at once", _get() + _post(CL5) + _get(), (200, 200, 200), False),
    Case("a request, and one that is none", _get() + b"{}\r\n\r\n" + SMUGGLED, (200, 400)),
    Case("a request behind an error", _get(host=b"") + SMUGGLED, (400,)),
    Case("a body behind an error", _post(b"Content-Length: x\r\n", SMUGGLED), (400,)),
    Case("an empty line between two", _post(CL5) + b"\r\n" + _get(), (200, 200), False),
    Case("half a head", b"GET / HTTP/1.1\r\nHos", (400,)),
    Case("half a body", _post(CL5, b"hel"), (400,)),
    Case("half a chunked body", _chunked(b"5\r\nhello\r\n"), (400,)),
    Case("a length that nothing follows", _post(b"Content-Length: 1000\r\n", b""), (400,)),
    Case("nothing", b"", ()),
    Case("an empty line alone", b"\r\n", (400,)),
]  # fmt: skip

CASES = [
    *LENGTHS, *CODINGS, *CHUNKS, *LINES, *METHODS, *VERSIONS, *HOSTS, *UPGRADES, *EXPECTATIONS, *CONNECTIONS,
]  # fmt: skip
