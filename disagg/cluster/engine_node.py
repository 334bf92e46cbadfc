"""Where one engine runs, incarnation after incarnation: what a supervisor needs of that, whatever it is.

Way:   supervisor -> [EngineNode]: Ray's (ray_node.py), several of them (gang.py), or a simulated one
Fails: NodeLost when what runs there cannot be reached any more (the next `prepare` begins anew), StartError as it says
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from disagg.errors import DisaggError
from disagg.host_spec import HostSpec
from disagg.process.news import Exit, Ready


class NodeLost(DisaggError):
    """The actor, its agent or their node is gone."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What a node gives the next incarnation to start with: its address, ports, and whether it is forked."""

    address: str
    first_port: int
    fork: bool


class EngineNode(Protocol):
    async def prepare(self) -> Ground:
        """Makes sure of an actor that answers, and sets ports aside."""

    async def start(self, spec: HostSpec) -> Ready:
        """Returns what the host says when it is up."""

    async def adopt(self, life: str) -> bool:
        """Takes over what runs this life, which an earlier controller has started; False where nothing does, or does
        not answer."""

    def keep_spare(self) -> None:
        """The incarnation is READY: what its next one needs may be prepared. Nobody waits for that."""

    async def exited(self) -> Exit:
        """Returns once nothing of the incarnation is left."""

    async def end(self) -> None:
        """Returns once nothing of the incarnation is left, or its actor is being killed; bounded, never raises."""

    async def lane(self) -> str:
        """The transports of its last checked transfer; empty if that is not known."""

    async def log(self, lines: int) -> str: ...

    def close(self) -> None:
        """Kills the actor."""


async def log_of(node: EngineNode, lines: int) -> str:
    """Its last lines, or why they cannot be read."""
    try:
        return await node.log(lines)
    except NodeLost as error:
        return f"its log cannot be read now: {error.message}"


def member_name(engine_id: str, member: int) -> str:
    """Of an engine's part on one of its nodes; its log's name, too."""
    return f"{engine_id}.{member}" if member else engine_id


def incomplete(trouble: str) -> str:
    return f"this log lacks lines: {trouble}. The engine serves on; make room, or set DISAGG_CACHE to another disk"
