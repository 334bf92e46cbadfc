"""An engine over several nodes is one engine: whatever happens to one of its nodes has happened to it."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from disagg.cluster.engine_node import Ground, NodeLost
from disagg.cluster.gang import Gang
from disagg.errors import StartError
from disagg.host_spec import FOLLOWED, HostSpec
from disagg.process.news import Exit, Ready

SPEC = HostSpec(
    engine_id="prefill-0",
    incarnation=3,
    role="prefill",
    arguments={"host": "10.0.0.1", "port": 20008, "nccl_port": 20009, "dist_init_addr": "10.0.0.1:20000", "tp_size": 4},
    environment={},
    plane_host="10.0.0.1",
    plane_port=20010,
    log_path="/logs/prefill-0.log",
    scratch="/run/prefill-0-3",
    fork=True,
)


class Node:
    def __init__(self, number: int) -> None:
        self.number = number
        self.ground = Ground(f"10.0.0.{number + 1}", 20000 + 11 * number, fork=True)
        self.started: HostSpec | None = None
        self.fails: Exception | None = None
        self.exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.ends = self.spares = 0

    async def prepare(self) -> Ground:
        return self.ground

    async def start(self, spec: HostSpec) -> Ready:
        self.started = spec
        if self.fails is not None:
            raise self.fails
        number = self.number
        ready = Ready(
            kv_tokens=1000 - number, requests_max=8, page_size=16, pids={"host": 100 + number}, devices=str(number)
        )
        return ready if number else msgspec.structs.replace(ready, plane="10.0.0.1:20010", ranks=4)

    async def exited(self) -> Exit:
        return await asyncio.shield(self.exit)

    async def end(self) -> None:
        self.ends += 1

    def keep_spare(self) -> None:
        self.spares += 1

    async def lane(self) -> str:
        return ("tcp", "", "rc_mlx5", "tcp")[self.number]

    async def log(self, lines: int) -> str:
        return f"line of {self.number}"

    def close(self) -> None:
        pass


def four() -> list[Node]:
    return [Node(number) for number in range(4)]


async def started() -> tuple[list[Node], asyncio.Task[Exit]]:
    """A gang that serves, and what waits for its end."""
    nodes = four()
    gang = Gang(nodes)
    await gang.prepare()
    await gang.start(SPEC)
    waiting = asyncio.create_task(gang.exited())
    await asyncio.sleep(0)
    return nodes, waiting


async def test_every_node_gets_its_part_of_one_engine() -> None:
    nodes = four()
    gang = Gang(nodes)
    await gang.prepare()
    ready = await gang.start(SPEC)
    specs = [node.started for node in nodes]
    assert [spec.arguments["node_rank"] for spec in specs if spec] == [0, 1, 2, 3]
    for spec in filter(None, specs):
        assert (spec.arguments["nnodes"], spec.arguments["dist_init_addr"]) == (4, "10.0.0.1:20000")
        assert (spec.members, spec.first_plane, spec.life) == (4, "10.0.0.1:20010", "prefill-0#3")
    second = specs[1]
    assert second is not None
    assert (second.plane_host, second.arguments["host"], second.arguments["port"]) == ("10.0.0.2", "10.0.0.2", 20019)
    assert (second.log_path, second.scratch) == ("/logs/prefill-0.1.log", "/run/prefill-0.1-3")
    assert ready.kv_tokens == 997, "an engine has the room of its poorest node"
    assert [member.node for member in ready.members] == [f"10.0.0.{n}" for n in range(1, 5)]
    assert (ready.plane, ready.pids) == ("10.0.0.1:20010", {"host": 100})
    assert await gang.lane() == "rc_mlx5, tcp"
    gang.keep_spare()
    assert [node.spares for node in nodes] == [1, 1, 1, 1]
    assert "==> node 2 of 4 <==\nline of 2" in await gang.log(5)


async def test_one_that_dies_while_starting_fails_the_start_and_all_are_ended() -> None:
    nodes = four()
    nodes[2].fails = StartError("prefill-0#3, node 2 of 4", "it died while starting")
    gang = Gang(nodes)
    await gang.prepare()
    with pytest.raises(StartError, match="node 2 of 4"):
        await gang.start(SPEC)
    await gang.end()
    assert [node.ends for node in nodes] == [1, 1, 1, 1]


async def test_the_exit_of_one_is_the_exit_of_all_and_says_which() -> None:
    nodes, waiting = await started()
    nodes[3].exit.set_result(Exit(signal="SIGKILL", tail=("last",)))
    exit_ = await waiting
    assert (exit_.status, exit_.tail) == ("node 3 of 4: killed by SIGKILL", ("last",))


async def test_the_host_that_began_it_is_told_and_not_one_that_followed() -> None:
    nodes, waiting = await started()
    nodes[0].exit.set_result(Exit(code=FOLLOWED))
    await asyncio.sleep(0.05)
    nodes[2].exit.set_result(Exit(signal="SIGKILL", tail=("out of memory",)))
    for other in (nodes[1], nodes[3]):
        other.exit.set_result(Exit(code=FOLLOWED))
    exit_ = await waiting
    assert (exit_.status, exit_.tail) == ("node 2 of 4: killed by SIGKILL", ("out of memory",))


async def test_a_failed_start_leaves_no_other_going_on() -> None:
    """What a slow node still does must not meet the next incarnation."""
    nodes = four()
    slow = nodes[3]
    going_on = asyncio.Event()

    async def prepare() -> Ground:
        await asyncio.sleep(0.2)
        going_on.set()
        return slow.ground

    slow.prepare = prepare  # type: ignore[method-assign]
    nodes[1].exit.set_result(Exit())

    async def lost() -> Ground:
        raise NodeLost("prefill-0.1", "the actor died")

    nodes[1].prepare = lost  # type: ignore[method-assign]
    with pytest.raises(NodeLost):
        await Gang(nodes).prepare()
    await asyncio.sleep(0.3)
    assert not going_on.is_set()


async def test_a_lost_node_is_told_by_its_number() -> None:
    nodes = four()
    gang = Gang(nodes)
    await gang.prepare()
    nodes[1].exit.set_exception(NodeLost("prefill-0.1", "the actor died"))
    with pytest.raises(NodeLost, match="node 1 of 4: the actor died"):
        await gang.exited()


async def test_ray_nodes_that_share_an_address_are_refused() -> None:
    nodes = four()
    nodes[1].ground = Ground(nodes[0].ground.address, 30000, fork=True)
    with pytest.raises(StartError, match="each needs its own"):
        await Gang(nodes).prepare()
