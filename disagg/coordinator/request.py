"""One request, from its receipt to its end: what outlives a leg.

In:    the frontend makes it: prompt ids, sampling, the text side (detokeniser and stop strings)
Owns:  prompt ids, emitted ids, text, usage, timeline, phase. Legs, rooms and engines come and go beneath it
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import msgspec

from disagg.coordinator.facts import Facts
from disagg.coordinator.phases import Phase
from disagg.coordinator.remembered import Remembered, usage_of
from disagg.coordinator.trace import RequestTrace
from disagg.coordinator.wishes import NONE as NO_WISHES
from disagg.coordinator.wishes import Wishes
from disagg.plane.messages import LegEnd, TokenLogprobs
from disagg.roles import Role
from disagg.routing.endpoints import RankId
from disagg.sampling import GRAMMARS
from disagg.tokenizer.given_text import GivenText

FinishReason = Literal["stop", "length"]


class TextSide(Protocol):
    """Turns token ids into text that may be shown (disagg/tokenizer/text.py)."""

    matched: str  # the stop string that has been met; empty before
    stopped: bool  # a stop string has been met: what `push` returned ends before it, and no more may be pushed

    def push(self, token_ids: list[int]) -> str:
        """The text these ids release; never half a character, never a part of a stop string. Ids behind the one that
        completes a stop string are taken out of the list: how many came with it is chance."""

    def flush(self) -> str:
        """The text that was held back, at the end of the output."""

    def begin_anew(self) -> None:
        """Nothing has been pushed."""


class NoText:
    """Of a request whose tokens alone are looked at, or which has none."""

    matched = ""
    stopped = False

    def push(self, token_ids: list[int]) -> str:
        return ""

    def flush(self) -> str:
        return ""

    def begin_anew(self) -> None:
        pass


@dataclass(slots=True)
class Blame:
    """One engine's death that is held against a request (see suspects.py)."""

    life: str
    role: Role
    alone: bool  # nothing else ran there
    is_cleared: bool = False  # it has run alone since, and done no harm


_PENALTIES = {"frequency_penalty": 0.0, "presence_penalty": 0.0, "repetition_penalty": 1.0}


@dataclass(slots=True)
class Request:
    """A request from its receipt to its end, whatever legs and engines it had. Plain data.

    `add` and `finish` bring tokens in; `phases.advance` alone changes the phase. Times are monotonic seconds of this
    frontend; counts are tokens.
    """

    id: str  # 32 hex digits; the first four name the frontend
    prompt_ids: Sequence[int]  # packed (disagg/token_ids.py)
    sampling: dict[str, Any]  # SGLang's names, without max_new_tokens, stop and seed mapping is done
    max_tokens: int  # output tokens
    text: TextSide
    received_at_s: float  # monotonic clock of this frontend, as every time in `timeline`
    phase: Phase = Phase.QUEUED
    phase_since_s: float = 0.0
    waiting_since_s: float = 0.0  # for a pair; a refusal does not begin the wait anew
    end_ids: frozenset[int] = frozenset()  # of these one ends the output, and is its last
    is_cancelled: bool = False
    tries: int = 0  # attempts so far, the running one included
    try_since_s: float = 0.0
    token_at_s: float = 0.0  # when the newest token came; 0 before the first
    failed_on: set[str] = field(default_factory=set)  # engine lives that lost it: another try rather avoids them
    blames: list[Blame] = field(default_factory=list)  # for engines that died under it
    emitted_ids: list[int] = field(default_factory=list)
    timeline: dict[str, float] = field(default_factory=dict)  # event -> monotonic seconds
    facts: Facts = field(default_factory=Facts)
    owner: bytes = b""  # who may see and cancel it: a digest of his key; empty without keys
    asks: dict[str, Any] = field(default_factory=dict)  # of both legs, beside sampling (plane.messages.Submit.asks)
    logprobs: list[TokenLogprobs] = field(default_factory=list)  # of the emitted ids, if asked for, and of unsent ones
    prompt_logprobs: list[TokenLogprobs] | None = None  # once the prompt has been read, if asked for
    # What prefill tells of chosen ids in the place of its token; None: not yet; empty: it need not, or it is joined.
    first_chosen: list[tuple[int, float]] | None = field(default_factory=list)
    matched: int | str | None = None  # the token, or the stop pattern, that ended it at its engine
    prefix_on: RankId | None = None  # where another request has just read the same prompt
    embeds: bool = False  # it asks for a vector; it then has max_tokens 1, and no text
    second_at: int = 0  # where the second text of a pair begins in `prompt_ids`; 0: there is none
    adapter: str = ""  # of its legs; empty: the model as it is
    salt: str = ""  # cached KV is shared among requests with the same one (disagg/frontend/cache_salt.py)
    embedding: bytes = b""  # what came: float32, little-endian
    wishes: Wishes = NO_WISHES
    path: array[int] = field(default_factory=lambda: array("Q"))  # keys of its KV blocks, once routing has asked
    path_tokens: int = -1  # of how many tokens
    trace: RequestTrace | None = None  # None: traces are off

    def add(self, token_ids: list[int], now_s: float) -> str:
        """Adds new tokens; returns the text that may be shown because of them. See TextSide.push: the list may lose
        its last ones."""
        self.token_at_s = now_s
        text = self.text.push(token_ids)
        self.emitted_ids += token_ids
        return text

    def finish(self, token_ids: list[int], reason: str, now_s: float) -> tuple[str, FinishReason]:
        """Adds the last tokens (none after a stop string); returns their text with what was held back, and why it ends.

        `reason`: the engine's (stop or length). A stop string that these tokens complete comes before it.
        """
        text = self.add(token_ids, now_s) if token_ids else ""
        if not self.text.stopped:
            text += self.text.flush()
        return text, "length" if reason == "length" and not self.text.stopped else "stop"

    def begin_anew(self) -> None:
        """As if no token had come: nobody has heard of any. What is known of the prompt stays."""
        self.emitted_ids, self.logprobs, self.matched, self.token_at_s = [], [], None, 0.0
        self.text.begin_anew()

    @property
    def given(self) -> GivenText | None:
        """`text`, where hosts say the text of the tokens."""
        return self.text if isinstance(self.text, GivenText) else None

    @property
    def tokens_left(self) -> int:
        return self.max_tokens - len(self.emitted_ids)

    @property
    def came_whole(self) -> FinishReason | None:
        """Why the output is complete with the tokens that came, or None. Needs no last word of the engine."""
        if self.emitted_ids and self.emitted_ids[-1] in self.end_ids:
            return "stop"
        return None if self.tokens_left else "length"

    @property
    def matched_stop(self) -> str | int | None:
        """The stop string that ended it, else what the engine says."""
        return self.text.matched or self.matched

    @property
    def lacks_prompt_logprobs(self) -> bool:
        """Whether it asks for logprobs of its prompt, and they have not come: they go before the first token."""
        return "logprob_start_len" in self.asks and self.prompt_logprobs is None

    @property
    def lacks_prefills_word(self) -> bool:
        """Whether logprobs that prefill alone can tell have not come: those of the prompt, or those of chosen ids in
        the place of the token that it hands over."""
        return self.lacks_prompt_logprobs or self.first_chosen is None

    def begin_try(self, *, is_pair: bool) -> None:
        """Forgets logprobs of tokens that the last try could not hand out."""
        del self.logprobs[len(self.emitted_ids) :]
        self.first_chosen = None if is_pair and "token_ids_logprob" in self.asks else []

    def join_first_chosen(self) -> None:
        """Called when decode's first token of a try is there, or prefill's word on it, before any is handed out."""
        at = len(self.emitted_ids)
        if self.first_chosen and len(self.logprobs) > at:
            self.logprobs[at] = msgspec.structs.replace(self.logprobs[at], chosen=self.first_chosen)
            self.first_chosen = []

    def sampling_of_a_leg(self, new_tokens: int) -> dict[str, Any]:
        """For a leg that makes so many tokens. What was emitted counts towards the fewest tokens of the answer."""
        sampling = self.sampling | {"max_new_tokens": new_tokens}
        if least := sampling.get("min_new_tokens"):
            sampling["min_new_tokens"] = min(max(least - len(self.emitted_ids), 0), new_tokens)
        return sampling

    @property
    def can_migrate(self) -> bool:
        """Whether another engine would continue with the same tokens."""
        return not self.why_it_stays

    @property
    def why_it_stays(self) -> str:
        """Why another engine, which gets the tokens so far as a prompt, could not go on with the same ones; "" where it
        could.

        Penalties count output tokens, a grammar has come to a place within itself, a stop pattern may have begun: that
        is lost. Not so with a seed, whose noise depends on the position in the whole sequence
        (disagg/sglang/plugins/seeds.py); with logit_bias, which is the same in each step; with stop_token_ids, which
        look at one token each; with min_new_tokens, of which the rest is told.
        """
        if any(self.sampling.get(name, neutral) != neutral for name, neutral in _PENALTIES.items()):
            return "its penalties count the tokens so far: another engine cannot go on"
        if any(name in self.sampling for name in GRAMMARS):
            return "its grammar stands where the tokens so far have brought it: another engine would begin it anew"
        if self.sampling.get("stop_regex"):
            return "what its stop_regex looks for may have begun in the tokens so far: another engine cannot see it"
        return ""

    def note_end(self, end: LegEnd, clock_offset_s: float, *, read_prompt: bool) -> None:
        """Notes what an engine measured, and the vector it made. Its times are its host's monotonic seconds,
        `clock_offset_s` ahead of ours; `read_prompt`: the leg is prefill's, or that of an engine without a partner."""
        self.embedding = end.embedding
        facts, stats = self.facts, dict(end.stats)
        if "kv_bytes" in stats:
            facts.kv_bytes, facts.kv_transfer_s = int(stats.pop("kv_bytes")), stats.pop("kv_transfer_s", 0.0)
        if "stood_s" in stats:
            facts.stood_s = stats.pop("stood_s")
        if end.matched is not None:
            self.matched = end.matched
        if not read_prompt:
            return
        facts.cached_tokens = end.cached_tokens
        here = {name: at_s - clock_offset_s for name, at_s in stats.items()}
        # What the engine measured stands for when we heard of it.
        moments = {"prefill_start": here.get("forward_start"), "prefill_end": here.get("forward_end")}
        if "transfer_end" in here:
            # Prefill may look at its transfer only after decode's first tokens.
            first_s = self.timeline.get("first_token") if self.tries == 1 else None
            ended_s = here["transfer_end"] if first_s is None else min(here["transfer_end"], first_s)
            moments["transfer_start"] = ended_s - (facts.kv_transfer_s or 0.0)
            moments["transfer_end"] = ended_s
        self.timeline |= {name: at_s for name, at_s in moments.items() if at_s is not None}

    def mark(self, name: str, at_s: float) -> None:
        self.timeline.setdefault(name, at_s)
        if self.trace is not None:
            self.trace.note(name, at_s)

    def remembered(self) -> Remembered:
        return Remembered(
            self.id,
            self.phase,
            self.received_at_s,
            self.timeline,
            self.facts,
            self.tries,
            len(self.prompt_ids),
            len(self.emitted_ids),
            self.owner,
        )

    @property
    def usage(self) -> dict[str, Any]:
        return usage_of(len(self.prompt_ids), len(self.emitted_ids), self.facts)
