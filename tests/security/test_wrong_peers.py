"""Whoever connects to a port of ours between processes and does not know the secret learns and does nothing.

Real sockets: the request plane of an engine host, the controller's registry and control, and a frontend's peers.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from disagg.frontend.peers import PeerServer
from disagg.plane import doorstep, framing
from disagg.plane import messages as m
from disagg.plane.framing import Connection
from disagg.plane.server import PlaneServer
from disagg.process.stub import FACTS, StubEngine
from disagg.registry.control import ControlClient, ControlServer
from disagg.registry.memory import MemoryRegistry
from disagg.registry.served import RegistryServer

SECRET, WRONG = b"right" * 8, b"wrong" * 8
LIMIT_S = 30.0


class Done:
    """What came of what peers sent."""

    def __init__(self) -> None:
        self.drained: list[str] = []

    async def drain(self, engine_id: str, _restart: bool) -> str | None:
        self.drained.append(engine_id)
        return None


async def no_log(_engine_id: str, _lines: int) -> str | None:
    return None


def _server(kind: str, done: Done) -> Any:
    match kind:
        case "plane":
            return PlaneServer(StubEngine(), FACTS, 1, SECRET)
        case "registry":
            return RegistryServer(MemoryRegistry(), SECRET)
        case "control":
            return ControlServer(SECRET, no_log, done.drain, lambda _prefill, _decode: None)
    return PeerServer(SECRET, None)  # type: ignore[arg-type]


@asynccontextmanager
async def listening(kind: str) -> AsyncIterator[tuple[int, Done, Any]]:
    done = Done()
    server = _server(kind, done)
    port = await server.start("127.0.0.1")
    try:
        yield port, done, server
    finally:
        closing = server.close()
        if closing is not None:
            await closing
        await asyncio.sleep(0)


def _client_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    hello = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="engine")
    with pytest.raises(ssl.SSLWantReadError):
        hello.do_handshake()
    return outgoing.read()


def _frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "little") + body


SENT = {
    "random bytes": os.urandom(4096),
    "zeros": bytes(4096),
    "HTTP": b"POST /disagg/engines/decode-0/drain HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n" * 2,
    "TLS": _client_hello() + os.urandom(64),
    "a frame of 4 GiB": b"\xff" * 4096,
    "frames, and no proof": _frame(m.encode(m.Abort(1))) * 20,
    "a megabyte": os.urandom(1 << 20),
}  # fmt: skip
KINDS = ["plane", "registry", "control", "peers"]


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        await _close(writer)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


async def _rest(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the other side closes, in whatever way."""
    came = b""
    with suppress(ConnectionError):
        async with asyncio.timeout(LIMIT_S):
            while part := await reader.read(1 << 16):
                came += part
    return came


async def _all_that_comes(port: int, sent: bytes) -> bytes:
    async with connected(port) as (reader, writer):
        writer.write(sent)
        return await _rest(reader)


@pytest.mark.parametrize("sent", SENT.values(), ids=SENT)
@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_no_proof_is_dropped_and_answered_with_a_nonce_alone(
    kind: str, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(kind) as (port, done, _):
        assert len(await _all_that_comes(port, sent)) in (0, framing.NONCE_BYTES)  # 0: its reset overtook the nonce
        await _a_peer_with_the_secret_enters(port)
        assert done.drained == []
    assert [record.levelno for record in caplog.records] == [logging.WARNING], caplog.text
    assert "wrong secret" in caplog.text


async def _a_peer_with_the_secret_enters(port: int, secret: bytes = SECRET) -> None:
    opened = asyncio.get_running_loop().create_future()

    def on_lost(why: str) -> None:
        if not opened.done():
            opened.set_exception(ConnectionError(why))

    connection = Connection(
        secret, is_server=False, on_open=opened.set_result, on_frame=lambda _body: None, on_lost=on_lost
    )
    await asyncio.get_running_loop().create_connection(lambda: connection, "127.0.0.1", port)
    try:
        await asyncio.wait_for(opened, LIMIT_S)
    finally:
        connection.close("seen")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_proof_of_another_secret_opens_nothing(kind: str) -> None:
    async with listening(kind) as (port, _, _):
        with pytest.raises(ConnectionError):
            await _a_peer_with_the_secret_enters(port, WRONG)
        await _a_peer_with_the_secret_enters(port)


async def test_a_conversation_that_was_recorded_is_of_no_use() -> None:
    """An order to drain, byte by byte as a frontend sent it, is sent again."""
    async with listening("control") as (port, done, _):
        recorded: list[bytes] = []
        through = await asyncio.start_server(lambda *streams: _relay(port, recorded, *streams), "127.0.0.1", 0)
        address = f"127.0.0.1:{through.sockets[0].getsockname()[1]}"
        assert await ControlClient(lambda: address, SECRET).drain("decode-0", restart=False) is None
        through.close()
        assert done.drained == ["decode-0"]
        stolen = b"".join(recorded)
        assert b"decode-0" in stolen, "the relay saw nothing"
        assert len(await _all_that_comes(port, stolen)) <= framing.NONCE_BYTES
        assert done.drained == ["decode-0"]


async def _relay(port: int, recorded: list[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Keeps what the client says."""
    to_read, to_write = await asyncio.open_connection("127.0.0.1", port)

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter, kept: list[bytes]) -> None:
        try:
            while data := await source.read(1 << 16):
                kept.append(data)
                sink.write(data)
        except ConnectionError:
            pass
        sink.close()

    await asyncio.gather(copy(reader, to_write, recorded), copy(to_read, writer, []))


async def test_a_server_that_sends_our_own_proof_back_is_not_trusted() -> None:
    async def mirror(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(os.urandom(framing.NONCE_BYTES))
        said = await reader.readexactly(framing.NONCE_BYTES + framing.MAC_BYTES)
        writer.write(said[framing.NONCE_BYTES :])
        await _rest(reader)
        await _close(writer)

    server = await asyncio.start_server(mirror, "127.0.0.1", 0)
    with pytest.raises(ConnectionError, match="does not know the secret"):
        await _a_peer_with_the_secret_enters(server.sockets[0].getsockname()[1])
    server.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_client_that_sends_the_servers_words_back_is_none(kind: str) -> None:
    async with listening(kind) as (port, _, _), connected(port) as (reader, writer):
        nonce = await reader.readexactly(framing.NONCE_BYTES)
        writer.write(nonce + nonce)
        assert await _rest(reader) == b""


@pytest.mark.parametrize("kind", KINDS)
async def test_many_that_connect_and_say_nothing_keep_nobody_out(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorstep, "UNPROVEN_MAX", 8)
    async with listening(kind) as (port, _, server):
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(40)]
        await _a_peer_with_the_secret_enters(port)
        assert len(server._doorstep) <= 8
        assert len(await _rest(silent[0][0])) <= framing.NONCE_BYTES
        for _, writer in silent:
            await _close(writer)


@pytest.mark.parametrize("kind", KINDS)
async def test_who_stays_half_open_is_dropped(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With half of a proof, too: a byte more is no reason for more time."""
    monkeypatch.setattr(framing, "HANDSHAKE_S", 0.2)
    async with listening(kind) as (port, _, server):
        async with connected(port) as (reader, writer):
            await reader.readexactly(framing.NONCE_BYTES)
            for _ in range(4):
                writer.write(b"x" * 8)
                await asyncio.sleep(0.02)
            assert await _rest(reader) == b""
        assert len(server._doorstep) == 0
