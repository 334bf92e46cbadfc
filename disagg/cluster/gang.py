"""An engine over several nodes: started together, failing together, started again together.

Way:   supervisor -> [Gang] -> one EngineNode a node
In:    the spec of the engine's first host; the others' follow from it
Fails: as an EngineNode does; whatever happens to one of its nodes has happened to the engine
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from disagg.cluster.engine_node import EngineNode, Ground, NodeLost, log_of, member_name
from disagg.errors import StartError
from disagg.host_spec import HostSpec
from disagg.process.news import Exit, Ready
from disagg.registry.records import Member
from disagg.sglang.arguments import Ports, member_arguments

T = TypeVar("T")
CAUSE_S = 1.0  # a host that dies takes the others with it, and their exits may be reported before its own


class Gang:
    """An EngineNode made of one EngineNode for each of the engine's nodes; the first one's host serves the plane.

    `prepare` raises StartError where two of its nodes have one address. Every method raises NodeLost when one of the
    nodes is lost.
    """

    def __init__(self, nodes: Sequence[EngineNode]) -> None:
        self._nodes = nodes
        self._grounds: list[Ground] = []

    async def prepare(self) -> Ground:
        self._grounds = await _all(node.prepare() for node in self._nodes)
        addresses = [ground.address for ground in self._grounds]
        if len(set(addresses)) < len(addresses):  # Ray allows several of its nodes on one machine
            what = f"its nodes have the addresses {', '.join(addresses)}, and each needs its own"
            raise StartError("placement", what, "give each Ray node its own --node-ip-address, and say ray.address")
        return self._grounds[0]

    async def start(self, spec: HostSpec) -> Ready:
        """What the first host says, with `members`, one a node."""
        specs = [member_spec(spec, member, ground, len(self._nodes)) for member, ground in enumerate(self._grounds)]
        said = await _all(node.start(each) for node, each in zip(self._nodes, specs, strict=True))
        members = tuple(
            Member(node=ground.address, pids=one.pids, devices=one.devices)
            for ground, one in zip(self._grounds, said, strict=True)
        )
        # An engine has room for what its poorest node has.
        kv_tokens, requests_max = (
            min(filter(None, of_each), default=0)
            for of_each in ([one.kv_tokens for one in said], [one.requests_max for one in said])
        )
        return msgspec.structs.replace(said[0], members=members, kv_tokens=kv_tokens, requests_max=requests_max)

    async def adopt(self, life: str) -> bool:
        """All of it, or nothing: the rest of an engine that has lost a node is ended."""
        if all(await asyncio.gather(*(node.adopt(life) for node in self._nodes))):
            return True
        self.close()
        return False

    def keep_spare(self) -> None:
        for node in self._nodes:
            node.keep_spare()

    async def exited(self) -> Exit:
        """Returns the exit of one of its hosts. Raises NodeLost when a node is lost.

        That of the host that died first, if it is reported within CAUSE_S.
        """
        waiting = [
            asyncio.create_task(node.exited(), name=f"exit of node {member}") for member, node in enumerate(self._nodes)
        ]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if all(map(_followed, filter(asyncio.Task.done, waiting))):
                await asyncio.wait(waiting, timeout=CAUSE_S, return_when=asyncio.ALL_COMPLETED)
            first = min(filter(asyncio.Task.done, waiting), key=_followed)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        where = f"node {waiting.index(first)} of {len(self._nodes)}"
        try:
            exit_ = first.result()
        except NodeLost as error:
            raise NodeLost(error.where, f"{where}: {error.what}") from error
        return msgspec.structs.replace(exit_, node=where)

    async def end(self) -> None:
        await asyncio.gather(*(node.end() for node in self._nodes))

    async def lane(self) -> str:
        lanes = await asyncio.gather(*(node.lane() for node in self._nodes))
        return ", ".join(sorted(set(filter(None, lanes))))

    async def log(self, lines: int) -> str:
        """One part a node; SGLang begins its lines with the rank."""
        logs = await asyncio.gather(*(log_of(node, lines) for node in self._nodes))
        heads = [f"==> node {member} of {len(self._nodes)} <==" for member in range(len(self._nodes))]
        return "\n\n".join(f"{head}\n{text}" for head, text in zip(heads, logs, strict=True))

    def close(self) -> None:
        for node in self._nodes:
            node.close()


async def _all(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Runs all; the first failure cancels the others and waits for them, so that none reaches the next incarnation."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _followed(exit_: asyncio.Task[Exit]) -> bool:
    return exit_.exception() is None and exit_.result().has_followed


def member_spec(first: HostSpec, member: int, ground: Ground, members: int) -> HostSpec:
    """`first`: of the engine's first host."""
    arguments = first.arguments
    ports = Ports.from_first(ground.first_port)
    if not first.is_simulated:
        arguments = member_arguments(arguments, member=member, members=members, host=ground.address, ports=ports)
    name = member_name(first.engine_id, member)
    return msgspec.structs.replace(
        first,
        arguments=arguments,
        plane_host=ground.address,
        log_path=str(Path(first.log_path).with_name(f"{name}.log")),
        scratch=str(Path(first.scratch).with_name(f"{name}-{first.incarnation}")),
        fork=ground.fork,
        member=member,
        members=members,
        first_plane=f"{first.plane_host}:{first.plane_port}",
    )
