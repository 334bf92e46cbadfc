"""What the registry holds of each engine: one record, replaced whole at each change. Who has met whom: met.py.

In:    the controller writes; every frontend watches
Owns:  the words for an engine's state. The unit everywhere is (engine id, incarnation, dp rank), even when dp is 1
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

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
    host: str = ""  # of one that `disagg frontend` runs: the name of its host; empty: it is the controller's
    run: str = ""  # of that `disagg frontend`


class SealedSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a frontend elsewhere has to be told, for who knows the deployment's secret (frontend/published.py)."""

    version: str  # of disagg
    sealed: bytes


class ModelState(StrEnum):
    COMING = "coming"  # frontends make ready for it while its engines start, and do not name it
    SERVING = "serving"
    LEAVING = "leaving"  # it takes no new request; those that run may end


class ModelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One of several models: what frontends are told of it. That of a deployment of one model they know from their
    start."""

    key: str  # its name in the YAML, which its engines carry
    number: int  # in the order in which they came: another one each time, also for a key that comes back
    state: ModelState
    spec: dict[str, Any]  # a ModelSpec (disagg/frontend/spec.py)


class ControllerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Who keeps a deployment's keys in a shared registry. There is one for each deployment: it is claimed."""

    run: str  # of `disagg serve`: another one after each start; RUN.TOKEN of controllers that follow each other
    host: str
    pid: int
    control: str = ""  # host:port where frontends ask it (control.py)
    is_whole: bool = (
        False  # all the others are there; before, a key that is missing may only have been lost with a lease
    )
