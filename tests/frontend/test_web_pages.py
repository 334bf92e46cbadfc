"""What a browser lets a page read: where `frontend.cors` allows its origin, and never what is for operators."""

from __future__ import annotations

import asyncio

import pytest
from scripted import MODEL, Answer, ScriptedBackend, ask, exchange, fails, http_request, says, serving

from disagg.errors import LegLost
from disagg.frontend.app import Frontend
from disagg.frontend.keys import Keys
from disagg.frontend.origins import Origins
from disagg.tokenizer.codec import Codec

PAGE, OTHER = "https://chat.example.org", "https://other.example.org"
CHAT = "/v1/chat/completions"
KEYS = Keys(["first-key-0123456789"])
SOME, ANY, NONE = Origins([PAGE], 77), Origins(["*"], 77), Origins()


async def preflight(
    frontend: Frontend, path: str = CHAT, origin: str = PAGE, method: str = "POST", names: str = "authorization"
) -> Answer:
    headers = [
        f"origin: {origin}",
        f"access-control-request-method: {method}",
        f"access-control-request-headers: {names}",
    ]
    # Browsers send a preflight without a body; its answer has none either.
    reader, writer = await asyncio.open_connection("127.0.0.1", frontend.port)
    try:
        writer.write("\r\n".join([f"OPTIONS {path} HTTP/1.1", "host: localhost", *headers, "", ""]).encode())
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode().split("\r\n")
        found = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        body = await reader.readexactly(int(found.get("content-length", 0)))
        return Answer(int(head[0].split()[1]), found, body)
    finally:
        writer.close()


async def test_a_preflight_is_answered_before_keys_are_asked_for(codec: Codec) -> None:
    async with serving(ScriptedBackend(says("Hi")), codec, keys=KEYS, origins=SOME) as frontend:
        answer = await preflight(frontend, names="authorization, content-type, x-stainless-os")
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert answer.headers["access-control-allow-methods"] == "post, options"
    assert answer.headers["access-control-allow-headers"] == "authorization, content-type, x-stainless-os"
    assert answer.headers["access-control-max-age"] == "77"
    assert answer.headers["vary"] == "origin"
    assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/models", "/v1/models/x", "/v1/requests/x", "/health"])
async def test_every_path_for_clients_has_one(codec: Codec, path: str) -> None:
    async with serving(ScriptedBackend(says("Hi")), codec, origins=ANY) as frontend:
        answer = await preflight(frontend, path)
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (204, "*")


@pytest.mark.parametrize("origins", [SOME, NONE])
async def test_an_origin_that_is_not_allowed(codec: Codec, origins: Origins) -> None:
    async with serving(ScriptedBackend(says("Hi")), codec, origins=origins) as frontend:
        refused = await preflight(frontend, origin=OTHER)
        assert (refused.status, refused.json["error"]["code"]) == (403, "origin_not_allowed")
        assert OTHER in refused.json["error"]["message"]
        answer = await exchange(frontend.port, http_request("GET", "/v1/models", headers=[f"origin: {OTHER}"]))
    assert answer.status == 200  # a browser keeps it from the page
    for each in (refused, answer):
        assert "access-control-allow-origin" not in each.headers
        assert each.headers.get("vary") == ("origin" if origins is SOME else None)


@pytest.mark.parametrize(
    "path", ["/disagg/status", "/disagg/engines/prefill-0/drain", "/disagg/logs/prefill-0", "/metrics"]
)
@pytest.mark.parametrize("keys", [Keys(), KEYS])
async def test_nothing_of_operators_is_for_pages(codec: Codec, path: str, keys: Keys) -> None:
    async with serving(ScriptedBackend(says("Hi")), codec, origins=ANY, keys=keys) as frontend:
        before = await preflight(frontend, path)
        answers = [
            await exchange(frontend.port, http_request(method, path, headers=["origin: null"]))
            for method in ("GET", "POST")
        ]
    assert before.status in (401, 403, 405)
    for answer in (before, *answers):
        assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_streams_and_errors_are_for_the_page_too(codec: Codec) -> None:
    origin = [f"origin: {PAGE}"]
    body = ask(stream=True).partition(b"\r\n\r\n")[2]
    async with serving(
        ScriptedBackend(fails(LegLost("x", "lost"), "Hi")), codec, origins=SOME, body_limit_bytes=200
    ) as frontend:
        stream = await exchange(frontend.port, http_request("POST", CHAT, body, origin))
        bad = await exchange(frontend.port, http_request("POST", CHAT, b"{", origin))
        large = await exchange(frontend.port, http_request("POST", CHAT, b" " * 201, origin))
        unknown = await exchange(frontend.port, http_request("GET", "/chat/completions", headers=origin))
        wrong = await exchange(frontend.port, http_request("GET", CHAT, headers=origin))
    assert [each.status for each in (stream, bad, large, unknown, wrong)] == [200, 400, 413, 404, 405]
    assert b"leg_lost" in stream.body
    for answer in (stream, bad, large, unknown, wrong):
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
        assert answer.headers["vary"] == "origin"


async def test_a_missing_key_is_told_to_the_page(codec: Codec) -> None:
    async with serving(ScriptedBackend(says("Hi")), codec, keys=KEYS, origins=SOME) as frontend:
        answer = await exchange(frontend.port, http_request("POST", CHAT, b"", [f"origin: {PAGE}"]))
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (401, PAGE)


async def test_a_plain_options_learns_the_methods(codec: Codec) -> None:
    async with serving(ScriptedBackend(says("Hi")), codec, keys=KEYS) as frontend:
        reader, writer = await asyncio.open_connection("127.0.0.1", frontend.port)
        writer.write(f"OPTIONS {CHAT} HTTP/1.1\r\nhost: {MODEL}\r\n\r\n".encode())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        writer.close()
    assert head.startswith(b"HTTP/1.1 204")
    assert b"allow: POST, OPTIONS" in head


async def test_names_of_headers_that_are_none_are_not_given_back(codec: Codec) -> None:
    async with serving(ScriptedBackend(says("Hi")), codec, origins=ANY) as frontend:
        for names in ("a;b", "a\tb", "\xe9", "a" * 3000, ""):
            answer = await preflight(frontend, names=names)
            assert answer.status == 204
            assert "access-control-allow-headers" not in answer.headers


async def test_a_private_network_is_opened_to_named_origins_alone(codec: Codec) -> None:
    for origins, opened in ((SOME, "true"), (ANY, None)):
        async with serving(ScriptedBackend(says("Hi")), codec, origins=origins) as frontend:
            answer = await preflight(frontend, names="a\r\naccess-control-request-private-network: true")
        assert answer.headers.get("access-control-allow-private-network") == opened
