"""What the registry holds of each engine: one record, replaced whole at each change. Who has met whom: met.py.

In:    the controller writes; every frontend watches
Owns:  the words for an engine's state. The unit everywhere is (engine id, incarnation, dp rank), even when dp is 1
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from disagg.lives import life_of
from disagg.plane.engine import EngineFacts
from disagg.roles import Role


class State(StrEnum):
    NEW = "new"  # it has had no life yet
    STARTING = "starting"
    READY = "ready"
    QUARANTINED = "quarantined"  # alive or not, gets no request until it is proven back
    DRAINING = "draining"
    DEAD = "dead"


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One node's part of an engine that goes over several."""

    node: str  # IP address
    pids: dict[str, int | list[int]]
    devices: str


class IncarnationFacts(EngineFacts, frozen=True, kw_only=True):
    """Known once an incarnation is up: told by its host, its actor, and the gang of an engine over several nodes."""

    plane: str = ""  # host:port of its request plane; empty of a further node, which serves none
    start_s: dict[str, float] = msgspec.field(default_factory=dict)  # where its start's seconds went, by phase
    devices: str = ""  # CUDA_VISIBLE_DEVICES as its actor got it
    members: tuple[Member, ...] = ()  # of an engine over several nodes: all of them, the first one too


class EngineRecord(IncarnationFacts, frozen=True, kw_only=True):
    """One engine, as the controller knows it. `id` outlives incarnations; addresses never do."""

    id: str
    role: Role
    state: State
    group: str = ""  # engines of one model: only these meet
    incarnation: int = 0
    node: str = ""  # IP address of its first node
    bootstrap: str = ""  # host:port of a prefill's bootstrap server
    since_s: float = 0.0  # wall clock of the last change of state
    restarts: int = 0
    detail: str = ""  # why it is not ready
    evict: bool = False  # it drains, and has waited long enough: what can migrate should leave
    place: dict[str, str] = msgspec.field(default_factory=dict)  # by kind, the nearest first (disagg/nearness.py)
    lane: str = ""  # the UCX transports that carried its last checked transfer

    @property
    def life(self) -> str:
        """Names this incarnation."""
        return life_of(self.id, self.incarnation)


class FrontendRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One frontend that listens. Every id of its requests begins with its number."""

    number: int
    url: str  # as OpenAI's clients want it
    pid: int
    peer: str = ""  # host:port where other frontends ask it for what it alone knows (frontend/peers.py)


class ControllerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Who keeps a deployment's keys in a shared registry. There is one for each deployment: it is claimed."""

    run: str  # of `disagg serve`: another one after each start
    host: str
    pid: int
    control: str = ""  # host:port where frontends ask it (control.py)
    is_whole: bool = (
        False  # all the others are there; before, a key that is missing may only have been lost with a lease
    )
