"""Who does not know the secret is dropped before its frames are parsed."""

from __future__ import annotations

import asyncio
import time

import pytest

from disagg.errors import LegLost
from disagg.plane import framing
from disagg.plane import messages as m
from disagg.plane.client import PlaneClient
from disagg.plane.server import PlaneServer
from disagg.process.stub import FACTS, StubEngine

SECRET = b"right" * 8


def _client(port: int, secret: bytes) -> PlaneClient:
    return PlaneClient(f"127.0.0.1:{port}", 1, secret, lambda _why: None)


async def test_the_right_secret_opens() -> None:
    server = PlaneServer(StubEngine(), FACTS, 1, SECRET)
    client = _client(await server.start("127.0.0.1"), SECRET)
    began_s = time.monotonic()
    await client.connect()
    assert abs(client.clock_offset_s) <= time.monotonic() - began_s, "both clocks are this machine's"
    assert (await client.loads())[0].running == 0
    client.close()
    server.close()


async def test_a_client_with_a_wrong_secret_is_dropped() -> None:
    engine = StubEngine()
    server = PlaneServer(engine, FACTS, 1, SECRET)
    with pytest.raises(LegLost):
        await _client(await server.start("127.0.0.1"), b"wrong" * 8).connect(2)
    assert not engine.legs
    server.close()


async def test_a_server_with_a_wrong_secret_is_not_trusted() -> None:
    server = PlaneServer(StubEngine(), FACTS, 1, b"wrong" * 8)
    with pytest.raises(LegLost):
        await _client(await server.start("127.0.0.1"), SECRET).connect(2)
    server.close()


async def test_frames_before_the_proof_are_never_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []
    monkeypatch.setattr(m, "decode_to_host", parsed.append)
    server = PlaneServer(StubEngine(), FACTS, 1, SECRET)
    port = await server.start("127.0.0.1")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    assert len(await reader.readexactly(framing.NONCE_BYTES)) == framing.NONCE_BYTES
    frame = m.encode(m.Abort(1))
    writer.write((len(frame).to_bytes(4, "little") + frame) * 20)
    assert await asyncio.wait_for(reader.read(), 30) == b""
    assert parsed == []
    writer.close()
    server.close()


async def test_a_silent_peer_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "HANDSHAKE_S", 0.1)
    server = PlaneServer(StubEngine(), FACTS, 1, SECRET)
    port = await server.start("127.0.0.1")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await reader.readexactly(framing.NONCE_BYTES)
    assert await asyncio.wait_for(reader.read(), 30) == b""
    writer.close()
    server.close()


async def test_an_oversized_frame_ends_the_connection() -> None:
    server = PlaneServer(StubEngine(), FACTS, 1, SECRET)
    client = _client(await server.start("127.0.0.1"), SECRET)
    await client.connect()
    assert client._connection is not None
    client._connection._transport.write((1 << 31).to_bytes(4, "little"))  # type: ignore[union-attr]
    async with asyncio.timeout(30):
        while client.is_open:
            await asyncio.sleep(0.01)
    server.close()


async def test_a_connection_that_ends_as_it_opens_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    server = PlaneServer(StubEngine(), FACTS, 1, SECRET)
    client = _client(await server.start("127.0.0.1"), SECRET)
    opened = PlaneClient._on_open

    def open_and_lose(self: PlaneClient, connection: framing.Connection) -> None:
        opened(self, connection)
        connection.connection_lost(None)  # proof and end were read at once: `connect` has not run since

    monkeypatch.setattr(PlaneClient, "_on_open", open_and_lose)
    with pytest.raises(LegLost, match="closed"):
        await client.connect(2)
    server.close()


UNREADABLE = {
    "no msgpack": b"\xc1",
    "no message": m.encode(7),
    "no message of this direction": m.encode(m.Pong(1.0, 2.0)),
    "no UTF-8": m.encode(m.AdaptersWanted()).replace(b"adapters", b"\xff" * 8),
}


@pytest.mark.parametrize("frame", UNREADABLE.values(), ids=UNREADABLE)
async def test_who_sends_what_cannot_be_read_is_dropped_and_nobody_else_is(
    frame: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    server = PlaneServer(StubEngine(), FACTS, 1, SECRET)
    port = await server.start("127.0.0.1")
    other = _client(port, SECRET)
    await other.connect()
    lost = asyncio.get_running_loop().create_future()
    connection = framing.Connection(
        SECRET,
        is_server=False,
        on_open=lambda opened: opened.send(frame),
        on_frame=lambda _body: None,
        on_lost=lost.set_result,
    )
    await asyncio.get_running_loop().create_connection(lambda: connection, "127.0.0.1", port)
    await asyncio.wait_for(lost, 30)
    assert (await other.loads())[0].running == 0
    assert not caplog.records, "asyncio has no error to tell"
    other.close()
    server.close()
