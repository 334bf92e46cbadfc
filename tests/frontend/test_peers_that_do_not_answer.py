"""A frontend that is gone, or is not of this deployment, counts as one that knows nothing."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from disagg.cluster.ports import free_port
from disagg.frontend import peers
from disagg.frontend.keys import NOBODY
from disagg.frontend.peers import Peers, PeerServer
from disagg.registry.records import FrontendRecord

SECRET, REQUEST = b"s" * 32, "0001" + "f" * 28


class Knows:
    def __getattr__(self, _name: str) -> Any:
        return lambda *_: {"id": REQUEST}


@pytest.fixture(params=["gone", "silent", "another deployment's"])
async def peer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    monkeypatch.setattr(peers, "ANSWER_S", 0.2)
    if request.param == "gone":
        yield f"127.0.0.1:{free_port()}"
    elif request.param == "silent":
        with socket.create_server(("127.0.0.1", 0)) as listener:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
    else:
        other = PeerServer(b"o" * 32, cast("Any", Knows()))
        yield f"127.0.0.1:{await other.start('127.0.0.1')}"
        await other.close()


def of(peer: str) -> Peers:
    records = {number: FrontendRecord(number=number, url="", pid=1, peer=peer) for number in range(2)}
    return Peers(0, SECRET, lambda: records)


async def test_it_knows_nothing(peer: str) -> None:
    asked = of(peer)
    assert asked.of(REQUEST) == 1
    assert await asked.timeline(1, REQUEST, NOBODY) is None
    assert not await asked.cancel(1, REQUEST, NOBODY)
    assert await asked.conversation(1, REQUEST, b"") is None
    assert await asked.statuses(None) == {1: None}
    assert await asked.figures() == []
    assert await asked.parts([None], 0.2) == {1: None}


async def test_one_that_is_not_there_any_more_is_asked_nothing() -> None:
    asked = Peers(0, SECRET, dict)
    assert asked.of(REQUEST) is None
    assert await asked.timeline(1, REQUEST, NOBODY) is None
    assert await asked.statuses(None) == {}


async def test_this_deployments_own_is_believed() -> None:
    server = PeerServer(SECRET, cast("Any", Knows()))
    port = await server.start("127.0.0.1")
    asked = of(f"127.0.0.1:{port}")
    assert await asked.timeline(1, REQUEST, NOBODY) == {"id": REQUEST}
    stranger = Peers(0, b"o" * 32, asked._frontends)
    assert await stranger.timeline(1, REQUEST, NOBODY) is None, "who does not know the secret is told nothing"
    await server.close()
