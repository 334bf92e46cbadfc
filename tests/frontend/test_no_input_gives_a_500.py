"""Random requests on every route: methods, paths, queries, headers and bodies that nobody should send. None is answered
with a 500, none is an error nobody foresaw, and the server goes on.

More of them, by hand: DISAGG_FUZZ_REQUESTS=20000 DISAGG_FUZZ_SEED=7 pytest tests/frontend/test_no_input_gives_a_500.py
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import re

import pytest
from scripted import MODEL, ScriptedBackend, ask, exchange, says, serving

from disagg.frontend.keys import Keys
from disagg.frontend.origins import Origins
from disagg.tokenizer.codec import Codec

REQUESTS = int(os.environ.get("DISAGG_FUZZ_REQUESTS", "600"))
SEED = int(os.environ.get("DISAGG_FUZZ_SEED", "14"))
AT_ONCE = 8
ANSWER_S = 30.0
NOT_FORESEEN = {500, 502, 503, 504}
KEY, ADMIN = "first-key-0123456789", "admin-key-0123456789"

METHODS = ["GET"] * 6 + ["POST"] * 6 + ["DELETE", "DELETE", "OPTIONS", "OPTIONS", "HEAD", "PUT", "PATCH", "TRACE"]
METHODS += ["get", "FOO", "PROPFIND", "CONNECT", "PRI"]
ROUTES = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/models",
    "/v1/models/",
    "/v1/requests/",
    "/health",
    "/ready",
    "/metrics",
    "/metrics/engines",
    "/disagg/status",
    "/disagg/loads",
    "/disagg/requests/",
    "/disagg/logs/",
    "/disagg/engines/",
    "/",
    "",
    "*",
    "http://other.example/v1/models",
]
PIECES = [
    b"prefill-0",
    MODEL.encode(),
    b"drain",
    b"/",
    b"//",
    b"..",
    b"../../../etc/passwd",
    b"%2e%2e%2f",
    b"%00",
    b"%ff%fe",
    b"%",
    b"%zz",
    b"%E2%80%A8",
    b"%D9%A1",
    b"%ED%A0%80",
    b"\xff",
    "é".encode(),
    b"chatcmpl-",
    b"cmpl-" * 3,
    b"0" * 32,
    b"9" * 5000,
    b"a" * 3000,
    b";x=1",
    b"'\"<>{}|\\^`",
    b"+",
    b"#f",
    b"?",
    b"~",
    b"@:80",
]
VALUES = [
    b"1",
    b"0",
    b"-1",
    b"9" * 30,
    b"9" * 5000,
    b"1e9",
    b"NaN",
    b"%00",
    b"%ff",
    b"",
    b"=",
    b"%C2%B2",
    b"%D9%A1%D9%A2",
]
VALUES += [b"true", b"a" * 2000, b"1&lines=2", b"%F0%9F%98", b"1;2", b" ", b"+5", b"0x10", b"1_000"]
QUERIES = [b"lines", b"restart", b"%6cines", b"x", b"", b"lines[]"]
HEADERS = [b"authorization", b"origin", b"host", b"content-type", b"content-encoding", b"x-request-id", b"accept"]
HEADERS += [
    b"access-control-request-method",
    b"access-control-request-headers",
    b"x-forwarded-for",
    b"forwarded",
    b"via",
]
HEADERS += [b"sec-fetch-site", b"x-disagg-room", b"range", b"if-none-match", b"accept-encoding", b"cookie", b"te"]
HEADER_VALUES = [b"", b"Bearer", b"Bearer " + KEY.encode(), b"Bearer " + ADMIN.encode(), b"bearer \xff", b"Basic eDp5"]
HEADER_VALUES += [
    b"null",
    b"http://evil.example",
    b"https://chat.example.org",
    b"[::1",
    b"]:[",
    b"a:b:c",
    b"POST",
    b"gzip",
]
HEADER_VALUES += [b"application/json", b"a, b", b"\xe2\x80\xa8", b"x" * 4000, b"127.0.0.1", b'for="[::1]"', b"bytes=0-"]
BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b"\x1f\x8b\x08",
    b"a=b",
    b'{"model":"scripted"}',
    b'"\\ud800"',
    b"[" * 900,
]


def random_request(choose: random.Random) -> bytes:
    method = choose.choice(METHODS).encode()
    path = choose.choice(ROUTES).encode() + b"".join(choose.choices(PIECES, k=choose.choice((0, 0, 1, 1, 2, 3))))
    if choose.random() < 0.5:
        pairs = [choose.choice(QUERIES) + b"=" + choose.choice(VALUES) for _ in range(choose.randint(1, 3))]
        path += b"?" + b"&".join(pairs)
    fields = [choose.choice(HEADERS) + b": " + choose.choice(HEADER_VALUES) for _ in range(choose.randrange(5))]
    if not any(field.startswith(b"host:") for field in fields):
        fields.append(b"host: localhost")
    body = choose.choice([*BODIES, random_body(choose)]) if method in (b"POST", b"PUT", b"PATCH") else b""
    fields += [b"content-length: %d" % len(body), b"connection: close"]
    return b"\r\n".join([b"%b %b HTTP/1.1" % (method, path), *fields, b"", b""]) + body


def random_body(choose: random.Random) -> bytes:
    """A good one with a field of any type; sometimes cut, or with a byte changed."""
    values = [
        "",
        "x\ud83d",
        "\u2028",
        0,
        -1,
        2**63,
        10**30,
        1.5,
        1e308,
        True,
        None,
        [],
        [[]],
        {},
        {"a": None},
        ["a"] * 3,
    ]
    names = ["model", "messages", "prompt", "stream", "stop", "seed", "max_tokens", "stream_options", "temperature"]
    names += ["chat_template_kwargs", "metadata", "user", "n", "logprobs", "response_format", "tools", "\u2028", ""]
    body: dict[str, object] = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
    for _ in range(choose.randint(1, 3)):
        body[choose.choice(names)] = choose.choice(values)
    data = bytearray(json.dumps(body).encode())
    if choose.random() < 0.3:
        data[choose.randrange(len(data))] = choose.randrange(256)
    return bytes(data[: choose.randrange(len(data))] if choose.random() < 0.1 else data)


async def status_of(port: int, request: bytes) -> int:
    """0: it was not answered but closed, as bytes are that are no HTTP."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        said = await asyncio.wait_for(reader.read(), ANSWER_S)
    except ConnectionResetError:
        return 0
    finally:
        writer.close()
    return int(said.split(b" ", 2)[1]) if said.startswith(b"HTTP/1.") else 0


@pytest.mark.parametrize(
    ("keys", "origins"),
    [(Keys(), Origins(["*"])), (Keys([KEY], [ADMIN]), Origins(["https://chat.example.org"]))],
    ids=["open", "keys"],
)
@pytest.mark.timeout(300 + REQUESTS // 10)
async def test_no_input_gives_a_500(
    codec: Codec, keys: Keys, origins: Origins, caplog: pytest.LogCaptureFixture
) -> None:
    choose = random.Random(SEED)
    requests = [random_request(choose) for _ in range(REQUESTS // 2)]
    seen: dict[int, int] = {}
    async with serving(ScriptedBackend(says("Hi")), codec, keys=keys, origins=origins) as frontend:

        async def send(some: list[bytes]) -> None:
            for request in some:
                status = await status_of(frontend.port, request)
                assert status not in NOT_FORESEEN, (SEED, status, request)
                seen[status] = seen.get(status, 0) + 1

        await asyncio.gather(*(send(requests[start::AT_ONCE]) for start in range(AT_ONCE)))
        good = re.sub(rb"\r\n", f"\r\nauthorization: Bearer {KEY}\r\n".encode(), ask(), count=1)
        assert (await exchange(frontend.port, good)).status == 200
    unforeseen = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert not unforeseen, unforeseen[0].getMessage()
    print(f"seed {SEED}: {sorted(seen.items())}")
    assert {200, 401 if keys.has_admins else 404, 405} <= seen.keys()
