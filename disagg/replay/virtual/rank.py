"""One simulated dp rank, from event to event: it reads prompts in chunks, and decodes where nothing is to be read.

Way:   Host -> [Rank.enqueue] -> chunks, one after the other -> on_read -> (a transfer) -> [Rank.join] -> steps ->
       on_end; of a decode rank, before: [Rank.ask_for_room] -> on_room, in order
As:    SGLang: a chunk holds up to `chunk_tokens` of prompts in order of arrival; a prompt begins when its KV has room,
       and finds then what is cached; after each chunk others may find what it has read. Prompts go before decode
       steps. A decode engine sets KV aside before its prefill begins; an answer has 512 tokens set aside at first
Not:   retraction. Where answers outgrow the pool they go on, and nobody new is let in
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol

from disagg.plane.ledger import OUTPUT_RESERVED_TOKENS, tokens_to_set_aside
from disagg.replay.virtual.clock import Clock
from disagg.replay.virtual.decode_batch import DecodeBatch, Gap
from disagg.replay.virtual.prefix_cache import OnEvent, PrefixCache
from disagg.replay.virtual.served import Served
from disagg.role_table import ROLES
from disagg.routing.endpoints import RankId
from disagg.simulated_engine.model import Model, pairs_of


class Listener(Protocol):
    """Who takes requests further: told where a prompt is read, KV is set aside, an answer is complete."""

    def on_read(self, served: Served, rank: Rank) -> None: ...

    def on_room(self, served: Served, rank: Rank) -> None: ...

    def on_end(self, served: Served, rank: Rank) -> None: ...


@dataclass(slots=True)
class Busy:
    """Seconds of work, of either kind."""

    read_s: float = 0.0
    read_tokens: int = 0
    decode_s: float = 0.0
    decoded_tokens: int = 0


class Rank:
    """One scheduler: a prefix cache, prompts that wait, a running batch. It does one thing at a time."""

    def __init__(
        self, id: RankId, clock: Clock, model: Model, listener: Listener, on_gap: Gap, on_event: OnEvent | None
    ) -> None:
        self.id, self._clock, self.model, self._listener = id, clock, model, listener
        block_tokens = model.cache_block_tokens if ROLES[model.role].reads_prompts else 0
        self.cache = PrefixCache(model.kv_tokens, block_tokens, on_event)
        self._serves_alone = ROLES[model.role].partner is None
        self.batch = DecodeBatch(model, on_gap)
        self.busy = Busy()
        self._waiting: deque[Served] = deque()
        self._asking: deque[Served] = deque()
        self._landing = 0
        self._landed: list[Served] = []
        self._is_busy = False
        self._steps = 0  # that are being run; 0: a chunk, or nothing
        self._began_s = 0.0
        self._version = 0  # of what is being run

    @property
    def running(self) -> int:
        return len(self.batch)

    # prompts

    def enqueue(self, served: Served) -> None:
        self._waiting.append(served)
        self._go_on()

    def has_sent(self, served: Served) -> None:
        """Its KV is with the decode rank."""
        self._let_go(served)

    # decode

    def ask_for_room(self, served: Served) -> None:
        self._asking.append(served)
        self._give_room()

    def join(self, served: Served) -> None:
        """Its KV is here, and its first token is out."""
        self._landing -= 1
        if served.output_tokens <= 1:
            self._leave(served)
            return
        self._landed.append(served)
        self._go_on()

    # inner

    def _go_on(self) -> None:
        if self._is_busy:
            if self._steps > 1:
                self._stop_at_next_step()
            return
        if self._waiting and self._begin_chunk():
            return
        for served in self._landed:
            self.batch.add(served)
        self._landed.clear()
        if self.batch.legs:
            self._begin_steps()

    def _begin_chunk(self) -> bool:
        budget, pairs, chunk = self.model.chunk_tokens, 0.0, []
        for served in self._waiting:
            if served.node is None and not self._take(served):
                break
            count = min(budget, served.prompt_tokens - served.read_tokens)
            pairs += pairs_of(count, served.read_tokens)
            chunk.append((served, count))
            budget -= count
            if not budget:
                break
        if not chunk:
            return False
        tokens = self.model.chunk_tokens - budget
        lasting_s = self.model.chunk_s(tokens, pairs) / self.model.speed
        self.busy.read_s += lasting_s
        self.busy.read_tokens += tokens
        self._is_busy = True
        self._clock.after(lasting_s, self._chunk_done, chunk)
        return True

    def _take(self, served: Served) -> bool:
        cache = self.cache
        # At least one token is computed: the last one, whose output is wanted.
        node = cache.match(served.path, (served.prompt_tokens - 1) // (cache.block_tokens or 1))
        cache.lock(node)
        cached = node.end * cache.block_tokens
        new_tokens = served.max_tokens if self._serves_alone else 0
        own = _in_pages(tokens_to_set_aside(served.prompt_tokens, new_tokens) - cached, self.model.page_size)
        if not cache.make_room(own + self._grown_tokens()):
            cache.unlock(node)
            return False
        cache.own_tokens += own
        served.node, served.own_tokens = node, own
        served.cached_tokens = served.read_tokens = cached
        served.first_chunk_s = self._clock.now_s
        return True

    def _chunk_done(self, chunk: list[tuple[Served, int]]) -> None:
        cache = self.cache
        for served, count in chunk:
            served.read_tokens += count
            assert served.node is not None
            before = served.node.end
            served.node = cache.extend(served.node, served.path, served.read_tokens // (cache.block_tokens or 1))
            given = (served.node.end - before) * cache.block_tokens
            served.own_tokens -= given
            cache.own_tokens -= given
        for served, count in chunk:
            if served.read_tokens < served.prompt_tokens:
                continue
            self._waiting.remove(served)
            served.read_s = self._clock.now_s
            served.sent_tokens = served.read_tokens - count if count < served.read_tokens - served.cached_tokens else 0
            if self._serves_alone:
                self._landing += 1
                served.first_s, served.stood_s = self._clock.now_s, self.busy.read_s
                self._listener.on_read(served, self)
                self.join(served)
            else:
                self._listener.on_read(served, self)
        self._is_busy = False  # not before: all that this chunk has read go on together
        self._go_on()

    def _let_go(self, served: Served) -> None:
        assert served.node is not None
        self.cache.unlock(served.node)
        self.cache.own_tokens -= served.own_tokens
        served.node, served.own_tokens = None, 0
        self._go_on()

    def _begin_steps(self) -> None:
        self._steps, self._began_s, self._is_busy = self.batch.steps_to_end, self._clock.now_s, True
        self._version += 1
        self.batch.begin(self._clock.now_s)
        self._clock.after(self.batch.lasting_s(self._steps), self._steps_done, self._version)

    def _stop_at_next_step(self) -> None:
        """Somebody is to be served after the step that runs now."""
        steps = min(self._steps, self.batch.steps_within(self._clock.now_s - self._began_s))
        if steps < self._steps:
            self._steps = steps
            self._version += 1
            self._clock.at(
                max(self._clock.now_s, self._began_s + self.batch.lasting_s(steps)), self._steps_done, self._version
            )

    def _steps_done(self, version: int) -> None:
        if version != self._version:
            return  # stopped earlier
        steps, count = self._steps, len(self.batch)
        self.busy.decode_s += self.batch.lasting_s(steps)
        self.busy.decoded_tokens += steps * count
        self._steps = 0
        for served in self.batch.advance(steps):
            self._leave(served)
        self._is_busy = False
        self._go_on()

    def _leave(self, served: Served) -> None:
        served.ended_s = self._clock.now_s
        if self._serves_alone:
            served.stood_s = self.busy.read_s - served.stood_s
            assert served.node is not None
            self.cache.unlock(served.node)
            self.cache.own_tokens -= served.own_tokens
        else:
            self.cache.own_tokens -= served.decode_held
        self._listener.on_end(served, self)
        self._give_room()

    def _give_room(self) -> None:
        while self._asking:
            served = self._asking[0]
            held = _in_pages(tokens_to_set_aside(served.prompt_tokens, served.max_tokens), self.model.page_size)
            is_full = len(self.batch) + len(self._landed) + self._landing >= self.model.requests_max
            if is_full or not self.cache.make_room(held + self._grown_tokens()):
                return
            self._asking.popleft()
            served.decode_held = held
            self.cache.own_tokens += held
            self._landing += 1
            self._listener.on_room(served, self)

    def _grown_tokens(self) -> int:
        """Of answers that have outgrown what was set aside for them."""
        return self.batch.grown_tokens(OUTPUT_RESERVED_TOKENS) if len(self.batch) else 0


def _in_pages(tokens: int, page_size: int) -> int:
    return -(-tokens // page_size) * page_size
