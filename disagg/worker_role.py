"""What sets an engine of one role apart, in one object: whatever asks "which role is this?" asks the object instead.

Way:   plan, supervisor, prover, canaries, routing -> ROLES[name] (role_table.py) -> [WorkerRole]
       one each in prefill/role.py, decode/role.py, aggregated.py and embedding.py
In:    plain values; out: plain values. Only `probe`, `prove` and `is_registered` speak to an engine
Owns:  nothing: an object of a role has no state, and all engines of the role share it

The class itself is an engine that serves a request alone. A role overrides what is different.
To add one: its file, its word in roles.py, its line in role_table.py, its pools in disagg/config/schema.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from disagg.roles import Role
from transfer.canary import RankEndpoint, probe_pair, probe_rank

T = TypeVar("T")


class WorkerRole:
    """One role. A request is served by an engine of a role that has no partner, or by one that sends KV and one that
    takes it, a *pair*. Where pairs of incarnations are named, the sender comes first; who serves alone is named twice.
    """

    name: ClassVar[Role]
    reads_prompts: ClassVar[bool] = True
    makes_tokens: ClassVar[bool] = True  # those that the client gets
    embeds: ClassVar[bool] = False  # a request to it gets a vector, and no token
    sends_kv_to: ClassVar[Role | None] = None
    takes_kv_from: ClassVar[Role | None] = None
    why_partner: ClassVar[str] = ""  # what its partner is for, to somebody who configured none
    defaults: ClassVar[Mapping[str, Any]] = {}  # of sglang.Engine, over the device's; a pool may overrule them
    is_paced: ClassVar[bool] = False  # pools of it may say pace_ms
    has_bootstrap_server: ClassVar[bool] = False

    @property
    def partner(self) -> Role | None:
        """The role at the other end of its KV; None: it moves none."""
        return self.sends_kv_to or self.takes_kv_from

    @property
    def waits_for(self) -> str:
        """What an engine that is up still waits for before it can be READY; empty: nothing but its own probes."""
        return "waiting for a peer" if self.partner else ""

    def arguments(self, pool_engine: Mapping[str, Any], *, device: str, bootstrap_port: int) -> dict[str, Any]:
        """The pool's own arguments, completed with the role's keyword arguments of `sglang.Engine`.

        `device` is cpu or cuda; `bootstrap_port` is the incarnation's own, whether it listens there or not.
        """
        return dict(pool_engine)

    def caches_prompts(self, pool_engine: Mapping[str, Any]) -> bool:
        """Whether an engine with these arguments may have a prefix cache, which its host is to tell of."""
        return not self.embeds and not pool_engine.get("disable_radix_cache")

    def environment(self, *, first_token_s: float, pace_ms: float | None) -> dict[str, str]:
        """What it alone needs in the environment before SGLang is imported. `first_token_s`: the deadline."""
        return {}

    def bootstrap_address(self, host: str, port: int) -> str:
        """host:port where decode engines find its bootstrap server; empty where there is none."""
        return f"{host}:{port}" if self.has_bootstrap_server else ""

    async def is_registered(self, bootstrap: str) -> bool:
        """Whether all its ranks can be found at `bootstrap`. What has no bootstrap server is found as it is."""
        return True

    def pair(self, own: T, other: T) -> tuple[T, T]:
        """`own`, an engine of this role, and one of its partner's: the sender first."""
        return (other, own) if self.takes_kv_from else (own, other)

    async def prove(
        self, sender: RankEndpoint | None, own: RankEndpoint, room: int, limit_s: float, transfer_s: float | None = None
    ) -> None:
        """A real request at `own`, with the KV of `sender` where it takes some; see `probe_pair`. Raises
        CanaryFailed."""
        await probe_pair(sender, own, room, limit_s, transfer_s)

    async def probe(self, endpoint: RankEndpoint, limit_s: float) -> None:
        """Whether this rank, alone, still makes steps. Raises CanaryFailed."""
        await probe_rank(endpoint, 1, limit_s)

    def new_tokens(self, asked: int) -> int:
        """How many tokens a leg of it makes, of those that the request asks for: for so many it reserves KV."""
        return asked

    def asks(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """What its leg of a request is asked for beside tokens (plane.messages.Submit.asks)."""
        return dict(asked)

    def memory_back_s(self, device: str) -> float:
        """For how long after its peers were told of its end an incarnation's GPU memory may still be in use. The next
        one waits for that: SGLang sizes its KV by what is free."""
        return 0.0
