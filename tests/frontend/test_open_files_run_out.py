"""As many clients as files may be open, and more: nobody spins, it is said once, and it passes."""

from __future__ import annotations

import asyncio
import contextlib
import encodings.idna  # noqa: F401  of sock_connect, which would import it when no file can be opened any more
import os
import resource
import socket
from collections.abc import Iterator

import pytest
import uvloop
from wire import Echo

from disagg.frontend.http1 import Limits, Refusals
from disagg.frontend.open_files import RESERVED, connections_allowed, raise_limit
from disagg.frontend.server import HttpServer

GET = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


@pytest.fixture(autouse=True)
def _limit_as_before() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def soft_limit(files: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft_limit(min(1024, hard))
    raise_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)


def test_connections_are_as_many_as_files_allow(caplog: pytest.LogCaptureFixture) -> None:
    soft_limit(1024)
    assert connections_allowed(500) == 500
    assert not caplog.records
    assert connections_allowed(10_000) == 1024 - RESERVED
    assert "only 1024 files may be open" in caplog.text


def test_no_file_is_left_for_a_client(caplog: pytest.LogCaptureFixture) -> None:
    """By whatever opened them: the listening loop drops the client, our tick says so, the next one is served."""

    async def scenario() -> None:
        refusals = Refusals()
        server = HttpServer(Echo(), Limits(tick_s=3600), refusals)
        await server.start("127.0.0.1", 0)
        peers = [socket.socket() for _ in range(3)]
        held: list[int] = []
        try:
            await runs_out(server, refusals, peers, held)
        finally:  # else uvloop, at its end, waits for ever for what it cannot close
            for file in held:
                os.close(file)
            for peer in peers:
                peer.close()
            await server.stop(0.1)

    async def runs_out(server: HttpServer, refusals: Refusals, peers: list[socket.socket], held: list[int]) -> None:
        loop = asyncio.get_running_loop()
        for peer in peers:
            peer.setblocking(False)
        soft_limit(64 + len(os.listdir("/proc/self/fd")))
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        await loop.sock_connect(peers[0], ("127.0.0.1", server.port))
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(loop.sock_recv(peers[0], 100), 10) == b""
        for now_s in (100.0, 101.0, 102.0):
            server.door.tick(now_s)
        assert refusals.by_reason["open_files"] == 3
        assert [record.message for record in caplog.records] == ["refused since the last such line: 1 open_files"]
        while held:
            os.close(held.pop())
        await loop.sock_connect(peers[1], ("127.0.0.1", server.port))
        await loop.sock_sendall(peers[1], GET)
        assert (await asyncio.wait_for(loop.sock_recv(peers[1], 4096), 10)).startswith(b"HTTP/1.1 200 ")
        server.door.tick(103.0)
        assert refusals.by_reason["open_files"] == 3

    uvloop.run(scenario())
