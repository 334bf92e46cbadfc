"""Port blocks go round before one comes again; an actor that does not answer is killed, not waited for."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from typing import Any

import pytest

from disagg.cluster import actors, ray_node, serve
from disagg.cluster.actors import PORT_BLOCK, PortBlocks
from disagg.cluster.engine_node import NodeLost
from disagg.cluster.ports import free_port, held_name, hold, why_not_bound
from disagg.cluster.ray_node import RayNode
from disagg.errors import StartError
from disagg.frontend.server import listen
from disagg.load import parse_config
from disagg.planning.plan import EnginePlan
from disagg.roles import Role

TEN_BLOCKS = range(20000, 20000 + 10 * PORT_BLOCK)
SIMULATED = "{version: 1, device: simulated, model: {path: smollm2}, prefill: {}, decode: {}}"
PLAN = EnginePlan("decode-0", Role.DECODE, "", 0, 1.0, 0.0, 1, 1, 1, {}, {})


@pytest.fixture(autouse=True)
def _all_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever runs beside this test."""
    apart = secrets.token_hex(8)
    monkeypatch.setattr(actors, "why_not_bound", lambda _host, _port: None)
    monkeypatch.setattr(actors, "held_name", lambda name: held_name(f"{apart}.{name}"))


def test_a_block_comes_again_only_after_all_others() -> None:
    blocks = PortBlocks(TEN_BLOCKS)
    taken = [blocks.reserve("prefill-0") for _ in range(100)]
    for at, first in enumerate(taken):
        assert first not in taken[max(0, at - 9) : at]
    assert set(taken) == set(TEN_BLOCKS[::PORT_BLOCK])


def test_engines_that_live_at_once_share_no_block() -> None:
    blocks = PortBlocks(TEN_BLOCKS)
    for _ in range(20):
        assert len({blocks.reserve(f"decode-{number}") for number in range(9)}) == 9


def test_deployments_of_one_machine_share_no_block_though_nobody_listens_yet() -> None:
    one, other = PortBlocks(TEN_BLOCKS), PortBlocks(TEN_BLOCKS)
    for _ in range(20):
        ones, others = ([blocks.reserve(f"decode-{n}") for n in range(4)] for blocks in (one, other))
        assert len({*ones, *others}) == 8
    assert [one.reserve("decode-4"), other.reserve("decode-4")]
    with pytest.raises(StartError, match="no free block"):
        one.reserve("decode-5")


def test_ports_that_others_use_are_passed_over_and_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = PortBlocks(TEN_BLOCKS)
    free = range(20042, 20042 + PORT_BLOCK)
    monkeypatch.setattr(actors, "why_not_bound", lambda _host, port: None if port in free else OSError())
    assert blocks.reserve("prefill-0") == 20042
    with pytest.raises(StartError, match="no free block"):
        blocks.reserve("decode-0")
    monkeypatch.setattr(actors, "why_not_bound", lambda _host, _port: None)
    assert blocks.reserve("decode-0") != 20042


class _Method:
    def __init__(self, answer: Any) -> None:
        self._answer = answer

    async def remote(self, *_arguments: Any) -> Any:
        if self._answer is None:
            await asyncio.Event().wait()
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


class _Actor:
    def __init__(self, answers: bool, port: int | Exception = 20000) -> None:
        self.node_id = _Method("node" if answers else None)
        self.end = _Method(True if answers else None)
        self.lane = _Method("tcp" if answers else None)
        self.ports = _Method(port)
        self.environment = _Method({"A": "b"})


class _NodeAgents:
    def __init__(self, agent: _Actor) -> None:
        self.agent = agent
        self.forgotten: list[Any] = []

    async def on(self, node_id: str) -> tuple[Any, str | None]:
        return self.agent, None

    def forget(self, node_id: str, agent: Any) -> None:
        self.forgotten.append(agent)


class _Node(RayNode):
    def _made(self) -> Any:
        self._actor = self._actor or _Actor(answers=True)
        return self._actor


def _node(actor: _Actor | None, agent: _Actor | None = None) -> tuple[_Node, _NodeAgents]:
    agents = _NodeAgents(agent or _Actor(answers=True))
    node = _Node(PLAN, None, agents, "127.0.0.1")  # type: ignore[arg-type]
    node._actor = actor
    return node, agents


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []
    monkeypatch.setattr(ray_node.ray, "kill", found.append)
    monkeypatch.setattr(ray_node, "ANSWER_S", 0.1)
    monkeypatch.setattr(ray_node, "END_S", 0.1)
    return found


async def test_an_actor_that_hangs_is_killed_and_the_next_incarnation_gets_a_new_one(killed: list[Any]) -> None:
    hung = _Actor(answers=False)
    node, _ = _node(hung)
    await asyncio.wait_for(node.end(), 30)
    assert killed == [hung]
    ground = await node.prepare()
    assert (ground.address, ground.first_port, ground.fork) == ("127.0.0.1", 20000, False)
    await node.end()
    assert killed == [hung], "one that answers is kept"


async def test_an_actor_that_hung_between_incarnations_is_replaced(killed: list[Any]) -> None:
    hung = _Actor(answers=False)
    node, _ = _node(hung)
    assert await node.lane() == ""
    await node.prepare()
    assert killed == [hung]
    assert await node.lane() == "tcp"


@pytest.mark.parametrize("port", [None, ray_node.RayError("the actor died")])
async def test_a_agent_that_is_gone_is_forgotten(killed: list[Any], port: Any) -> None:
    agent = _Actor(answers=True, port=port)
    node, agents = _node(None, agent)
    with pytest.raises(NodeLost, match="agent"):
        await node.prepare()
    assert agents.forgotten == [agent]


def test_a_held_port_is_for_who_names_it() -> None:
    port = free_port()
    with hold("127.0.0.1", port):
        with pytest.raises(OSError, match="in use"), socket.socket() as stranger:
            stranger.bind(("127.0.0.1", port))
        for shares_port in (False, True):
            with contextlib.ExitStack() as stack:
                for _ in range(1 + shares_port):
                    stack.enter_context(listen("127.0.0.1", port, shares_port=shares_port))
                stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                assert why_not_bound("127.0.0.1", port) is not None
            assert why_not_bound("127.0.0.1", port) is None


async def test_serve_holds_its_frontends_port_before_it_starts_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one of Ray's processes may take it meanwhile."""
    port, seen = free_port(), []

    async def run(*_: object, **__: object) -> None:
        with socket.socket() as stranger:
            try:
                stranger.bind(("127.0.0.1", port))
            except OSError:
                seen.append("held")

    monkeypatch.setattr(serve, "_run", run)
    deployment = parse_config(SIMULATED, [f"frontend.port={port}"])
    await serve.serve(deployment)
    assert seen == ["held"]
    with socket.create_server(("127.0.0.1", port)), pytest.raises(StartError, match=f"{port} cannot be bound"):
        await serve.serve(deployment)
