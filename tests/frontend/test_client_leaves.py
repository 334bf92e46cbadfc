"""A client that goes away, or does not read, ends its request in every phase; nobody else notices."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest
from scripted import MODEL, Running, ScriptedBackend, ask, exchange, hangs, http_request, serving, until

from disagg.frontend.http1 import Limits, Refusals
from disagg.tokenizer.codec import Codec
from disagg.tokenizer.short_bodies import SHORT_BYTES


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("texts", [(), ("one",)], ids=["before the first token", "after it"])
async def test_leaving_ends_the_run(codec: Codec, stream: bool, texts: tuple[str, ...]) -> None:
    backend, refusals = ScriptedBackend(hangs(*texts)), Refusals()
    async with serving(backend, codec, refusals=refusals) as frontend:
        reader, writer = await asyncio.open_connection("127.0.0.1", frontend.port)
        writer.write(ask(stream=stream))
        await until(lambda: len(backend.requests) == 1)
        if stream and texts:
            await reader.readuntil(b"one")
        writer.close()
        await asyncio.wait_for(backend.ended.wait(), 30)
        assert backend.closed == ["cancelled"]
    assert not refusals.errors  # nobody was told an error


async def test_leaving_is_seen_by_each_request_of_a_connection(codec: Codec) -> None:
    async def script(running: Running) -> None:
        await running.say("first", [1], "stop" if len(backend.requests) == 1 else None)
        if len(backend.requests) == 2:
            await asyncio.Event().wait()

    backend = ScriptedBackend(script)
    async with serving(backend, codec) as frontend:
        reader, writer = await asyncio.open_connection("127.0.0.1", frontend.port)
        writer.write(ask(stream=True) + ask(stream=True))  # the second waits for the first's answer
        await reader.readuntil(b"[DONE]")
        await reader.readuntil(b"first")
        assert backend.closed == ["finished"]
        backend.ended.clear()
        writer.close()
        await asyncio.wait_for(backend.ended.wait(), 30)
        assert backend.closed == ["finished", "cancelled"]


async def test_leaving_while_the_prompt_is_tokenised_starts_nothing(codec: Codec) -> None:
    """Long enough for a reader, which takes its time to start."""
    backend = ScriptedBackend(hangs())
    async with serving(backend, codec) as frontend:
        _, writer = await asyncio.open_connection("127.0.0.1", frontend.port)
        writer.write(ask("/v1/completions", metadata={"a": "b" * SHORT_BYTES}))
        await asyncio.sleep(0.05)
        writer.close()
        await asyncio.sleep(0.05)
        # The reader is free again when it has read that body: the next one waits for it.
        next_one = ask("/v1/completions", metadata={"a": "b" * SHORT_BYTES}, max_tokens=0)
        assert (await exchange(frontend.port, next_one, limit_s=60)).status == 400
        assert backend.requests == []


async def test_leaving_in_the_midst_of_a_body(codec: Codec) -> None:
    backend = ScriptedBackend(hangs())
    async with serving(backend, codec) as frontend:
        _, writer = await asyncio.open_connection("127.0.0.1", frontend.port)
        writer.write(ask()[:-5])
        await asyncio.sleep(0.05)
        writer.close()
        await asyncio.sleep(0.05)
        assert backend.requests == []
        assert (await exchange(frontend.port, http_request("GET", "/health"))).status == 200


async def test_a_client_that_does_not_read_holds_little_and_is_given_up(codec: Codec) -> None:
    asked_for = 0

    async def torrent(running: Running) -> None:
        nonlocal asked_for
        while True:
            asked_for += 1
            await running.say("x" * 1000, [1])

    backend = ScriptedBackend(torrent)
    async with serving(backend, codec, limits=Limits(write_s=0.3, tick_s=0.02)) as frontend:
        peer = socket.socket()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.setblocking(False)
        await asyncio.get_running_loop().sock_connect(peer, ("127.0.0.1", frontend.port))
        await asyncio.get_running_loop().sock_sendall(peer, ask(stream=True))
        taken = 0
        while asked_for != taken or not taken:  # no piece is asked for that cannot be written: it stops by itself
            taken = asked_for
            await asyncio.sleep(0.1)
        assert taken < 8000  # kilobytes: what the kernel's buffers and one high-water mark hold
        await asyncio.wait_for(backend.ended.wait(), 30)
        assert backend.closed == ["cancelled"]
        await until(lambda: frontend._server.door.connections == set())
        peer.close()


async def test_a_client_that_reads_slowly_gets_everything(codec: Codec) -> None:
    async def script(running: Running) -> None:
        for index in range(3000):
            await running.say(f"{index:04d}" * 250, [1], "length" if index == 2999 else None)

    async with serving(ScriptedBackend(script), codec, limits=Limits(write_s=0.3, tick_s=0.02)) as frontend:
        reader, writer = await asyncio.open_connection("127.0.0.1", frontend.port, limit=2048)
        writer.write(ask("/v1/completions", stream=True))
        data = b""
        for _ in range(10):  # longer than the limit in all, never without a byte for so long
            await asyncio.sleep(0.05)
            data += await reader.read(1 << 20)
        while not data.endswith(b"0\r\n\r\n"):
            data += await reader.read(1 << 20)
        writer.close()
        assert b"[DONE]" in data
        assert data.count(b'"finish_reason":null') == 3000


async def test_two_requests_on_one_connection_do_not_meet(codec: Codec) -> None:
    """The watch for the client's leaving ends with the first answer and does not touch the second."""

    async def script(running: Running) -> None:
        await asyncio.sleep(0.01)
        await running.say(str(len(running.request.prompt_ids)), [1], "stop")

    async with serving(ScriptedBackend(script), codec) as frontend:
        reader, writer = await asyncio.open_connection("127.0.0.1", frontend.port)
        for count in range(1, 30):
            body = json.dumps({"model": MODEL, "prompt": "x" * count}).encode()
            writer.write(http_request("POST", "/v1/completions", body))
            answer = await asyncio.wait_for(reader.readuntil(b"}}}"), 30)
            assert f'"text":"{count}"'.encode() in answer
        writer.close()
