"""What a host drives: SGLang, the simulated engine, or a stub; and what an engine tells back.

Way:   plane server -> [Engine.submit] -> scheduler ranks; tokens come back through a LegSink
Owns:  the meaning of one leg on one engine. An engine knows nothing of pairs, retries or clients
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from disagg.adapters import Adapter
from disagg.plane.messages import Bootstrap, MetricFamily, RankHealth, RankLoad, TokenLogprobs

LOADED = "loaded_tokens"  # among a leg's stats: of its prompt, from the host's memory


@dataclass(frozen=True, slots=True)
class Leg:
    """One engine's half of a request."""

    id: str  # unique in the deployment; a request's next try is another leg
    prompt_ids: Sequence[int]  # packed (disagg/token_ids.py)
    sampling: dict[str, Any]  # SGLang's sampling parameters, max_new_tokens among them
    dp_rank: int
    bootstrap: Bootstrap | None  # None on an aggregated engine
    asks: dict[str, Any] = field(default_factory=dict)  # see Submit
    embeds: bool = False  # it is to end with a vector, and makes no token
    second_at: int = 0  # where the second text of a pair begins; 0: there is none
    adapter: str = ""  # one that `load_adapter` brought here; empty: the model as it is
    salt: str = ""  # see Submit
    trace: str = ""  # see Submit


class LegSink(Protocol):
    """Called on the host's event loop. `on_end` comes exactly once and nothing follows it."""

    def on_tokens(self, token_ids: list[int], logprobs: list[TokenLogprobs] | None = None) -> None: ...

    def on_stage(self, name: str, cached_tokens: int | None = None) -> None:
        """The leg has come to bootstrapping, prefilling or transferring. `cached_tokens`: of its prompt, if known."""

    def on_embedding(self, packed: bytes) -> None:
        """What a leg that embeds comes to, before its end: float32, little-endian."""

    def on_end(
        self,
        reason: str,
        detail: str,
        cached_tokens: int,
        stats: dict[str, float],
        matched: int | str | None = None,
    ) -> None:
        """The engine holds nothing for this leg any more. The words are LegEnd's."""


class EngineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Known once an engine has started. 0 or empty: not known yet, or not told by a part of it on a further node."""

    ranks: int = 1  # attention-data-parallel schedulers: dp ranks are 0 .. ranks-1
    context_length: int = 0  # tokens
    kv_tokens: int = 0  # capacity of each rank
    request_tokens_max: int = 0  # the longest prompt + output one request may have
    requests_max: int = 0  # that run at once on each rank
    page_size: int = 1  # tokens; KV is allocated in these
    chunk_tokens: int = 0  # of prompts, that each rank reads at most in one step; 0: not known, or no limit
    caches_prompts: bool = True  # what it has read it may have later: it has a prefix cache
    pids: dict[str, int | list[int]] = {}  # host, schedulers, detokenizers; its actor adds its own and the reaper's
    # Sampling parameters, by their names in a request, that this engine would accept and ignore -> what would do.
    ignores: dict[str, str] = {}
    switched_off: tuple[str, ...] = ()  # parts of ours that the installed SGLang does not fit (disagg/sglang/fit.py)


class Engine(Protocol):
    def start(self) -> EngineFacts:
        """Blocks until the engine can take legs; raises what the engine raised."""

    def submit(self, leg: Leg, sink: LegSink) -> object:
        """Begins a leg and returns its handle; must run on the host's event loop."""

    def abort(self, handle: object) -> None:
        """Ends the leg; `on_end` still comes once its KV is free, with reason abort unless it had ended.

        May be called twice, and before the engine has seen the leg.
        """

    def loads(self) -> list[RankLoad]:
        """The newest load of each rank."""

    def metrics(self, labels: str) -> list[MetricFamily]:
        """Its own, in Prometheus' text format; none where it has none. Called in a thread."""

    def health(self) -> list[RankHealth]:
        """Whether each rank makes progress, from what was last seen of it. Ranks are not asked: a hung one cannot
        answer."""

    async def flush_cache(self, wait_s: float) -> str:
        """Empties the prefix cache of all ranks, which must be idle within `wait_s`. Returns why not; "" once it is
        done."""

    def drop_peer(self, life: str) -> None:
        """The engine incarnation `life` is dead: forget its transfer agents."""

    async def load_adapter(self, adapter: Adapter) -> None:
        """Returns when legs may name it. Raises ValueError with what the engine said."""

    async def unload_adapter(self, name: str) -> None:
        """Returns once nothing is left of it; legs that run with it are waited for. Raises ValueError."""

    def stop(self) -> None: ...
