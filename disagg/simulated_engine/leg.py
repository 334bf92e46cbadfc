"""One leg inside a simulated rank: where it is, what it holds, and whom it deals with.

Owns:  the words for the places a leg comes through. Only rank.py moves a leg
"""

from __future__ import annotations

import asyncio
from enum import Enum, auto
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from disagg.plane.engine import Leg, LegSink
from disagg.roles import Role
from disagg.simulated_engine.memory import Holding
from disagg.simulated_engine.peering import Message, PeerLink
from disagg.simulated_engine.poison import Poison
from disagg.simulated_engine.script import is_at
from disagg.simulated_engine.tokens import EOS, fold, following, logprobs_of, prompt_logprobs_of, start_of

RankT = TypeVar("RankT")  # Rank: its file imports this one
FAKE_HOST = "2.2.2.2"  # SGLang's: KV goes nowhere, or comes from nowhere


class At(Enum):
    """Where a leg is."""

    DISPATCHING = auto()  # on its way from the engine's front to the scheduler
    BOOTSTRAPPING = auto()  # prefill waits for decode's memory; decode looks for its prefill
    ALLOCATING = auto()  # decode waits for memory
    LANDING = auto()  # decode waits for KV
    WAITING = auto()  # for its first chunk, or its next
    TRANSFERRING = auto()
    RUNNING = auto()  # decodes
    RELEASING = auto()  # decode was aborted; prefill may still be writing into its pages
    STALLED = auto()  # for what cannot come, until it is aborted
    OVER = auto()


class SimulatedLeg(Generic[RankT]):
    """One leg in one rank, from submit to its last word."""

    def __init__(self, leg: Leg, sink: LegSink, rank: RankT) -> None:
        self.leg, self.sink, self.rank = leg, sink, rank
        self.at = At.DISPATCHING
        self.abort_is_asked = False  # SGLang's abort_sent: another abort does nothing
        self.abort_waits = False  # for the dispatch
        self.decode_is_gone = False
        self.holding: Holding | None = None
        self.cached_tokens = 0
        self.computed_tokens = 0
        self.state = 0  # of the chain of tokens; set when the prompt has been computed
        self.sent_tokens = 0
        self.link: PeerLink | None = None  # prefill: to the decode that allocated memory
        self.peer: PrefillPeer | None = None  # decode: the prefill it waits for
        self.timer: asyncio.TimerHandle | None = None
        self.stats: dict[str, float] = {}
        self._untold_prompt = leg.prompt_ids if "logprob_start_len" in leg.asks else []

    @property
    def read(self) -> int:
        """The state of the chain once this engine has read the prompt."""
        return fold(self.leg.prompt_ids, start_of(self.leg.adapter))

    def wait_no_more(self) -> None:
        if self.timer is not None:
            self.timer.cancel()

    @property
    def tokens_wanted(self) -> int:
        return int(self.leg.sampling["max_new_tokens"])

    @property
    def ignore_eos(self) -> bool:
        return bool(self.leg.sampling.get("ignore_eos", False))

    def makes(self, count: int) -> list[int]:
        """The next ids of its answer, at most `count`."""
        sampling = self.leg.sampling
        if "says" in sampling:
            at = is_at(sampling, self.leg.prompt_ids) + self.sent_tokens
            return list(sampling["says"][at : at + count])
        ids, self.state = following(self.state, count, self.ignore_eos)
        return ids

    def ends_with(self, ids: list[int]) -> bool:
        """Whether its answer is complete with these, its newest ids, which have been sent."""
        sampling = self.leg.sampling
        if "says" in sampling:
            return is_at(sampling, self.leg.prompt_ids) + self.sent_tokens >= len(sampling["says"])
        return ids[-1] == EOS and not self.ignore_eos

    def put(self, ids: list[int], *, takes_kv: bool) -> None:
        """Tokens, with what the leg is asked for beside them. `takes_kv`: it is a decode engine's."""
        asks = self.leg.asks
        if "return_logprob" not in asks:
            self.sink.on_tokens(ids)
            return
        prompt_ids, self._untold_prompt = self._untold_prompt, []
        prompt = prompt_logprobs_of(prompt_ids, asks["top_logprobs_num"]) if prompt_ids else []
        told = logprobs_of(ids, asks["top_logprobs_num"], asks.get("token_ids_logprob", ()))
        if takes_kv and self.sent_tokens == len(ids):  # prefill's token, which it hands over without them
            told[0] = msgspec.structs.replace(told[0], chosen=[])
        self.sink.on_tokens(ids, prompt + told)

    def kills(self, role: Role, tokens: int, legs: int) -> bool:
        """Whether it ends its engine now, with so many tokens of prompt and answer, among so many legs of a batch."""
        poison = self.leg.sampling.get("poison")
        return poison is not None and Poison(*poison).kills(role, tokens, legs)

    @property
    def room(self) -> int:
        return self.leg.bootstrap.room if self.leg.bootstrap else 0

    @property
    def is_fake(self) -> bool:
        """A canary that wants no transfer."""
        return self.leg.bootstrap is not None and self.leg.bootstrap.host == FAKE_HOST

    @property
    def is_over(self) -> bool:
        return self.at is At.OVER


class PrefillPeer(Protocol):
    """What a decode leg's rank asks of the prefill engine that the leg waits for. Peer is the one there is."""

    @property
    def is_open(self) -> bool: ...

    def send(self, message: Message) -> None: ...

    def forget(self, leg: SimulatedLeg[Any]) -> None: ...
