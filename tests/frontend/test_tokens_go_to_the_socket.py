"""Pieces that an engine's step writes to the client's socket, past the task that serves the request."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator

import pytest
from scripted import ScriptedBackend, ask, exchange, serving, until

from disagg.coordinator.request import Output, Piece, Request
from disagg.tokenizer.codec import Codec


async def output_of(request: Request) -> Output:
    await until(lambda: request.output is not None)
    assert request.output is not None
    return request.output


async def test_they_come_in_order_and_as_the_others(codec: Codec) -> None:
    async def script(request: Request) -> AsyncGenerator[Piece, None]:
        yield Piece("a", [1])
        output = await output_of(request)
        assert output.is_open()
        output.put("b", [2])
        output.put("", [3])  # half a character: no event
        output.put('"c\n', [4])
        yield Piece("d", [5], "stop")

    async with serving(ScriptedBackend(script), codec) as frontend:
        answer = await exchange(frontend.port, ask(stream=True))
    events = [line[6:] for line in answer.body.decode().split("\n\n") if line.startswith("data: {")]
    choices = [json.loads(event)["choices"][0] for event in events]
    assert [choice["delta"].get("content") for choice in choices] == ["", "a", "b", '"c\n', "d", None]
    assert choices[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize("leaves", [False, True], ids=["does not read", "leaves"])
async def test_a_client_that_does_not_read_or_leaves_closes_the_way(codec: Codec, leaves: bool) -> None:
    closed = asyncio.Event()

    async def script(request: Request) -> AsyncGenerator[Piece, None]:
        yield Piece("a", [1])
        output = await output_of(request)
        try:
            while output.is_open():
                output.put("x" * 65536, [2])
                await asyncio.sleep(0)
        finally:  # one that leaves cancels this, too
            if not output.is_open():
                closed.set()
        await asyncio.Event().wait()
        yield Piece("never", [3], "stop")

    backend = ScriptedBackend(script)
    async with serving(backend, codec) as frontend:
        with socket.create_connection(("127.0.0.1", frontend.port)) as peer:
            peer.setblocking(False)
            await asyncio.get_running_loop().sock_sendall(peer, ask(stream=True))
            if leaves:
                await asyncio.get_running_loop().sock_recv(peer, 4096)
                peer.close()
            await asyncio.wait_for(closed.wait(), 30)
        await asyncio.wait_for(backend.ended.wait(), 30)
    assert backend.closed == ["cancelled"]
