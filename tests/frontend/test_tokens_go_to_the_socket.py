"""Pieces that an engine's step writes to the client's socket, past the task that serves the request."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest
from scripted import Running, ScriptedBackend, ask, exchange, serving

from disagg.tokenizer.codec import Codec


async def test_they_come_in_order_and_as_the_others(codec: Codec) -> None:
    async def script(running: Running) -> None:
        assert running.sink.is_open()
        running.sink.put("a", [1])
        running.sink.put("b", [2])
        running.sink.put("", [3])  # half a character: no event
        running.sink.put('"c\n', [4])
        running.sink.end("d", [5], "stop")

    async with serving(ScriptedBackend(script), codec) as frontend:
        answer = await exchange(frontend.port, ask(stream=True))
    events = [line[6:] for line in answer.body.decode().split("\n\n") if line.startswith("data: {")]
    choices = [json.loads(event)["choices"][0] for event in events]
    assert [choice["delta"].get("content") for choice in choices] == ["", "a", "b", '"c\n', "d", None]
    assert choices[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize("leaves", [False, True], ids=["does not read", "leaves"])
async def test_a_client_that_does_not_read_or_leaves_closes_the_way(codec: Codec, leaves: bool) -> None:
    closed = asyncio.Event()

    async def script(running: Running) -> None:
        sink = running.sink
        sink.put("a", [1])
        try:
            while sink.is_open():
                sink.put("x" * 65536, [2])
                await asyncio.sleep(0)
        finally:  # one that leaves cancels this, too
            if not sink.is_open():
                closed.set()
        await asyncio.Event().wait()
        sink.end("never", [3], "stop")

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
