"""A client that says "no more from me" and goes on reading is served; one that has left is not."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Callable, Coroutine

import pytest
import uvloop
from scripted import MODEL, Running, ScriptedBackend, ask, exchange, hangs, http_request, says, serving, until

from disagg.tokenizer.codec import Codec


def old(stream: bool) -> bytes:
    """HTTP/1.0, as nginx speaks it to what stands behind it unless told otherwise."""
    body = json.dumps({"model": MODEL, "prompt": "Hi", "stream": stream}).encode()
    return b"POST /v1/completions HTTP/1.0\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


async def half_closed(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    writer.write_eof()
    data = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    return data


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("waits", [True, False], ids=["slow", "quick"])
async def test_it_gets_its_answer(codec: Codec, stream: bool, waits: bool) -> None:
    asked = asyncio.Event()

    async def script(running: Running) -> None:
        if waits:  # until it was asked whether it is there
            await asyncio.wait_for(asked.wait(), 10)
        await running.say("one", [1])
        if waits and stream:
            await asyncio.sleep(0.05)
        await running.say("two", [2], "stop")

    async with serving(ScriptedBackend(script), codec) as frontend:
        reader, writer = await asyncio.open_connection("127.0.0.1", frontend.port)
        writer.write(ask("/v1/completions", stream=stream))
        writer.write_eof()
        if waits:
            assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10) == b"HTTP/1.1 100 Continue\r\n\r\n"
            asked.set()
        data = await asyncio.wait_for(reader.read(), 10)
        writer.close()
    assert data.startswith(b"HTTP/1.1 200 ")
    assert b"onetwo" in data or (b'"text":"one"' in data and b'"text":"two"' in data)
    assert data.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n" if stream else b"}}")


async def test_all_its_requests_are_answered(codec: Codec) -> None:
    async with serving(ScriptedBackend(says("x", gap_s=0.02)), codec) as frontend:
        data = await half_closed(frontend.port, ask() + http_request("GET", "/health") + ask())
    assert data.count(b"HTTP/1.1 200 ") == 3


async def test_one_that_leaves_later_is_noticed_later(codec: Codec) -> None:
    backend = ScriptedBackend(hangs())
    async with serving(backend, codec) as frontend:
        reader, writer = await asyncio.open_connection("127.0.0.1", frontend.port)
        writer.write(ask())
        writer.write_eof()
        await asyncio.wait_for(reader.readuntil(b"100 Continue\r\n\r\n"), 10)
        assert not backend.ended.is_set()
        writer.close()
        await asyncio.wait_for(backend.ended.wait(), 10)
        assert backend.closed == ["cancelled"]
        await until(lambda: frontend._server.door.connections == set())


@pytest.mark.parametrize("request_bytes", [ask(), ask(stream=True), ask()[:-5], b"GET /health HT"])
async def test_a_reset_at_any_moment_leaves_nothing(codec: Codec, request_bytes: bytes) -> None:
    backend = ScriptedBackend(hangs("a"))
    async with serving(backend, codec) as frontend:
        peer = socket.create_connection(("127.0.0.1", frontend.port))
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.sendall(request_bytes)
        door = frontend._server.door
        await until(lambda: len(door.connections) == 1 and (bool(backend.requests) or bool(door.held_bytes)))
        peer.close()
        await until(lambda: not door.connections and not door.tasks and not door.waiting)
        assert door.held_bytes == 0
        assert backend.closed == ["cancelled"] * len(backend.requests)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_http_1_0_gets_no_chunks_and_its_answer_ends_with_the_connection(codec: Codec, stream: bool) -> None:
    async def script(running: Running) -> None:
        await running.say("one", [1])
        await running.say("two", [2])
        await running.say("three", [3], "stop")

    async with serving(ScriptedBackend(script), codec) as frontend:
        reader, writer = await asyncio.open_connection("127.0.0.1", frontend.port)
        writer.write(old(stream))
        data = await asyncio.wait_for(reader.read(), 10)
        writer.close()
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert b"transfer-encoding" not in head
    if stream:
        events = [line for line in body.split(b"\n\n") if line]
        assert all(event.startswith(b"data: ") for event in events)
        texts = [json.loads(event[6:])["choices"][0]["text"] for event in events[:-1]]
        assert ("".join(texts), events[-1]) == ("onetwothree", b"data: [DONE]")
    else:
        assert json.loads(body)["choices"][0]["text"] == "onetwothree"


async def test_a_quick_answer_reaches_half_closed_http_1_0(codec: Codec) -> None:
    async with serving(ScriptedBackend(says("x")), codec) as frontend:
        assert b" 200 OK\r\n" in await half_closed(frontend.port, b"GET /health HTTP/1.0\r\n\r\n")
        assert b'"text":"x"' in await half_closed(frontend.port, old(False))


async def test_http_1_0_that_left_is_noticed_though_nothing_can_be_said_to_it(codec: Codec) -> None:
    backend = ScriptedBackend(hangs())
    async with serving(backend, codec) as frontend:
        _, writer = await asyncio.open_connection("127.0.0.1", frontend.port)
        writer.write(old(False))
        await until(lambda: len(backend.requests) == 1)
        writer.close()
        await asyncio.wait_for(backend.ended.wait(), 10)
        assert backend.closed == ["cancelled"]


async def test_head_is_get_without_the_body(codec: Codec) -> None:
    paths = ["/health", "/ready", "/metrics", "/v1/models", f"/v1/models/{MODEL}", "/disagg/status", "/disagg/loads"]
    backend = ScriptedBackend(says("x"))
    async with serving(backend, codec) as frontend:
        for path in [*paths, "/disagg/logs/prefill-0", "/disagg/requests/none", "/none"]:
            whole = await exchange(frontend.port, http_request("GET", path))
            data = await half_closed(frontend.port, http_request("HEAD", path))
            head = data.decode().lower().split("\r\n")
            assert data.endswith(b"\r\n\r\n"), path
            assert data.count(b"\r\n\r\n") == 1
            assert int(head[0].split()[1]) == whole.status
            assert f"content-length: {whole.headers['content-length']}" in head
        for path in ("/v1/completions", "/flush_cache"):
            refused = await half_closed(frontend.port, http_request("HEAD", path))
            assert refused.startswith(b"HTTP/1.1 405 "), path
        assert backend.flushed == [], "HEAD changes nothing"


async def test_a_body_that_comes_behind_an_error_does_not_take_the_answer_away(codec: Codec) -> None:
    """8 MB sent by a client that reads only then: neither a reset nor a second answer."""
    async with serving(ScriptedBackend(says("x")), codec, body_limit_bytes=1000) as frontend:
        for fields in ("", "x: \x01\r\n"):  # 413, 400

            def client(fields: str = fields) -> bytes:
                with socket.create_connection(("127.0.0.1", frontend.port), timeout=20) as peer:
                    head = f"POST /v1/completions HTTP/1.1\r\nhost: a\r\n{fields}content-length: {8 << 20}\r\n\r\n"
                    peer.sendall(head.encode() + b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n" * (8 << 15))
                    data = b""
                    while part := peer.recv(65536):
                        data += part
                    return data

            data = await asyncio.to_thread(client)
            assert data.startswith(b"HTTP/1.1 400 " if fields else b"HTTP/1.1 413 ")
            assert data.count(b"HTTP/1.1 ") == 1


async def test_by_ipv6(codec: Codec) -> None:
    from disagg.frontend.app import Frontend
    from disagg.frontend.own_tokenizer import OwnTokenizer

    backend = ScriptedBackend(says("x"))
    frontend = Frontend(backend, OwnTokenizer(codec, lambda: backend.served))
    await frontend.start("::1", 0)
    reader, writer = await asyncio.open_connection("::1", frontend.port)
    writer.write(b"GET /health HTTP/1.1\r\nHost: [::1]:%d\r\nConnection: close\r\n\r\n" % frontend.port)
    assert b"alive" in await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await frontend.stop(0.1)


@pytest.mark.parametrize(
    "test",
    [
        test_all_its_requests_are_answered,
        test_one_that_leaves_later_is_noticed_later,
        test_a_quick_answer_reaches_half_closed_http_1_0,
        test_a_body_that_comes_behind_an_error_does_not_take_the_answer_away,
    ],
)
def test_the_same_on_uvloop(codec: Codec, test: Callable[[Codec], Coroutine[None, None, None]]) -> None:
    """Frontends run on it, and it tells of a client's end in ways of its own."""
    uvloop.run(test(codec))
