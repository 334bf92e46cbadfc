"""What the registry holds of each engine: one record, replaced whole at each change. Who has met whom: met.py.

In:    the controller writes; every frontend watches
Owns:  the words for an engine's state. The unit everywhere is (engine id, incarnation, dp rank), even when dp is 1
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from disagg.lives import life_of
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


class EngineRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One engine, as the controller knows it. `id` outlives incarnations; addresses never do."""

    id: str
    role: Role
    state: State
    group: str = ""  # engines of one model: only these meet
    incarnation: int = 0
    node: str = ""  # IP address of its first node
    ranks: int = 1  # attention-data-parallel schedulers: dp ranks are 0 .. ranks-1
    plane: str = ""  # host:port of its request plane
    bootstrap: str = ""  # host:port of a prefill's bootstrap server
    pids: dict[str, int | list[int]] = {}  # actor, reaper, host, schedulers, detokenizers
    devices: str = ""  # CUDA_VISIBLE_DEVICES as its actor got it
    members: tuple[Member, ...] = ()  # of an engine over several nodes: all of them, the first one too
    since_s: float = 0.0  # wall clock of the last change of state
    restarts: int = 0
    detail: str = ""  # why it is not ready
    evict: bool = False  # it drains, and has waited long enough: what can migrate should leave
    lane: str = ""  # the UCX transports that carried its last checked transfer
    context_length: int = 0  # tokens; 0: not known yet
    kv_tokens: int = 0  # capacity of each rank
    request_tokens_max: int = 0  # longest prompt + output a rank can hold
    requests_max: int = 0  # that run at once on each rank; 0: not known yet
    page_size: int = 1  # tokens
    ignores: dict[str, str] = {}  # sampling parameters that it would take and not heed -> what would do
    switched_off: tuple[str, ...] = ()  # parts of ours that its SGLang does not fit
    start_s: dict[str, float] = {}  # where the seconds of this incarnation's start went, by phase, in order

    @property
    def life(self) -> str:
        """Names this incarnation."""
        return life_of(self.id, self.incarnation)
