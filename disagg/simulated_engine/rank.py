"""A simulated dp rank's scheduler: it takes as long as a real one would, and computes nothing.

Way:   SimulatedEngine -> [Rank.submit, abort] -> queues -> steps, one after the other -> a leg's sink
Owns:  the rank's legs and KV pool; a leg's last word is said where its KV is given back, once
Fails: as SGLang does (see engine.py). A frozen rank does nothing and keeps what should have been done; a dead one
       forgets it
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from disagg.kv_events.book import KvBook
from disagg.kv_events.events import Begun, Event
from disagg.plane.ledger import OUTPUT_RESERVED_TOKENS, tokens_to_set_aside
from disagg.roles import Role
from disagg.simulated_engine.leg import At, SimulatedLeg
from disagg.simulated_engine.memory import Holding, KvPool
from disagg.simulated_engine.model import Model, pairs_of
from disagg.simulated_engine.peering import Gone, Landed
from disagg.simulated_engine.tokens import fold, following, vector

RankLeg = SimulatedLeg["Rank"]


class RankEngine(Protocol):
    """What a rank needs of the engine it is part of."""

    delivered_to: set[str]
    model: Model
    kv: KvBook | None

    def lasting(self, duration_s: float) -> float: ...

    def meet(self, leg: RankLeg) -> None: ...

    def allocated(self, leg: RankLeg) -> None: ...

    def forget_room(self, leg: RankLeg) -> None: ...

    def loses_a_transfer(self) -> bool: ...

    def dies(self) -> None: ...


class Rank:
    """One simulated scheduler: its queues, its KV pool, its running batch. All times are simulated, by the loop's
    clock.

    A leg waits until KV pages are set aside for it, has its prompt read in chunks, then makes one token a step. Sizes
    are tokens, and pages of `model.page_size` tokens.
    """

    def __init__(self, engine: RankEngine, index: int) -> None:
        self.engine, self.index, self.model = engine, index, engine.model
        model = engine.model
        block_tokens = 0 if model.role is Role.DECODE else model.cache_block_tokens

        self.pool = KvPool(model.kv_tokens, model.page_size, block_tokens, self._tell_cache if block_tokens else None)
        self.tells_cache = bool(block_tokens)
        self.legs: dict[RankLeg, None] = {}
        self._allocating: deque[RankLeg] = deque()
        self._waiting: deque[RankLeg] = deque()
        self._running: dict[RankLeg, None] = {}
        self._chunk: list[tuple[RankLeg, int]] = []
        self._step: asyncio.TimerHandle | None = None
        self._aborts: list[RankLeg] = []
        self._frozen_at_s: float | None = None
        self._backlog: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self.is_dead = False
        self.step_longest_s = 0.0
        self._step_began_s = 0.0

    # from the engine

    def begin_to_tell(self) -> None:
        """What it has cached, all of it."""
        if self.tells_cache:
            self._tell_cache([Begun(self.index), *self.pool.cached])

    def submit(self, leg: RankLeg) -> None:
        self.legs[leg] = None
        self.later(leg, self.model.dispatch_s, self._dispatched, leg)

    def abort(self, leg: RankLeg) -> None:
        if leg.at is At.DISPATCHING:
            leg.abort_waits = not self.model.loses_early_aborts
            return
        for each in list(self.legs):
            if each.at is not At.DISPATCHING and each.leg.id.startswith(leg.leg.id):  # as SGLang's scheduler does
                if self._step is not None:
                    self._aborts.append(each)
                else:
                    self.do(self._abort, each)

    def freeze(self) -> None:
        if self._frozen_at_s is None:
            self._frozen_at_s = self._now_s()

    def thaw(self) -> None:
        self._frozen_at_s = None
        backlog, self._backlog = self._backlog, []
        for action, arguments in backlog:
            self.do(action, *arguments)
        self.go_on()

    def die(self) -> None:
        """The scheduler's process is gone; it tells nobody."""
        self.is_dead = True
        if self._step is not None:
            self._step.cancel()
        for leg in self.legs:
            leg.wait_no_more()
        self.legs.clear()
        self._backlog.clear()

    def do(self, action: Callable[..., None], *arguments: Any) -> None:
        """Runs a step of the scheduler's loop. A frozen scheduler keeps it for when it goes on."""
        if self._frozen_at_s is not None:
            self._backlog.append((action, arguments))
        elif not self.is_dead:
            action(*arguments)

    def later(self, leg: RankLeg, delay_s: float, action: Callable[..., None], *arguments: Any) -> None:
        """A leg waits for one thing at a time."""
        leg.wait_no_more()
        leg.timer = asyncio.get_running_loop().call_later(delay_s, self.do, action, *arguments)

    @property
    def beat_age_s(self) -> float:
        """An idle scheduler comes round all the time; a busy one after each step."""
        if self._frozen_at_s is not None:
            return self._now_s() - self._frozen_at_s
        return self._now_s() - self._step_began_s if self._step is not None else 0.0

    @property
    def is_frozen(self) -> bool:
        return self._frozen_at_s is not None

    @property
    def running_count(self) -> int:
        return len(self._running) + sum(leg.at is At.WAITING and leg.holding is not None for leg in self._waiting)

    def prefill_may_begin(self, leg: RankLeg) -> None:
        if leg.at is At.BOOTSTRAPPING:
            self._await_turn(leg)

    def stall(self, leg: RankLeg) -> None:
        """The leg waits for something that cannot come, until it is aborted."""
        if leg.at is At.WAITING:
            self._waiting.remove(leg)
        leg.wait_no_more()
        leg.at = At.STALLED

    def decode_left(self, leg: RankLeg) -> None:
        """SGLang polls rooms before the first chunk and after the last one, not in between."""
        leg.decode_is_gone = True
        if leg.at in (At.BOOTSTRAPPING, At.TRANSFERRING):
            self.end(leg, "error", "Aborted by decode-side abort notification.")

    def link_lost(self, leg: RankLeg) -> None:
        """Prefill's link to the decode engine: noticed when there is something to write."""
        if leg.at is At.TRANSFERRING:
            self.end(leg, "error", "NIXL_ERR_REMOTE_DISCONNECT")

    def allocate(self, leg: RankLeg) -> None:
        """Decode has found its prefill and now wants memory."""
        if leg.at is At.BOOTSTRAPPING:
            leg.at = At.ALLOCATING
            self._allocating.append(leg)
            self.go_on()

    def landed(self, leg: RankLeg, first_token: int) -> None:
        if leg.at is At.LANDING and leg.room != 0:
            self.engine.forget_room(leg)
            leg.state = leg.read
            self._run(leg, first_token)

    def end(self, leg: RankLeg, reason: str, detail: str = "") -> None:
        """Ends a leg: gives back what it holds and tells its sink."""
        if leg.is_over:
            return
        queue = {At.WAITING: self._waiting, At.ALLOCATING: self._allocating}.get(leg.at)
        if queue is not None:
            queue.remove(leg)
        leg.at = At.OVER
        self._running.pop(leg, None)
        leg.wait_no_more()
        if leg.holding is not None:
            self.pool.give_back(leg.holding, leg.computed_tokens)
        self.engine.forget_room(leg)
        del self.legs[leg]
        leg.sink.on_end(reason, detail, leg.cached_tokens, leg.stats)
        self.go_on()

    def go_on(self) -> None:
        """Whatever can begin, begins."""
        if self._step is None and not self.is_frozen and not self.is_dead:
            while self._allocating and self._allocate_first():
                pass
            if self._step is None and not (self._waiting and self._begin_chunk()) and self._running:
                context = sum(len(leg.leg.prompt_ids) + leg.sent_tokens for leg in self._running)
                self._begin(self.model.decode_step_s(len(self._running), context), self._step_done)

    # dispatch and abort

    def _dispatched(self, leg: RankLeg) -> None:
        leg.timer = None
        if leg.abort_waits:
            self.end(leg, "abort", "Aborted by AbortReq.")
        elif leg.leg.bootstrap is None:
            self._await_turn(leg)
        else:
            leg.at = At.BOOTSTRAPPING
            leg.sink.on_stage("bootstrapping")
            self.engine.meet(leg)

    def _await_turn(self, leg: RankLeg) -> None:
        leg.wait_no_more()
        leg.at = At.WAITING
        self._waiting.append(leg)
        self.go_on()

    def _abort(self, leg: RankLeg) -> None:
        if leg.at is At.LANDING and leg.peer is not None and leg.peer.is_open:
            leg.at = At.RELEASING
            leg.peer.send(Gone(leg.room))
            self.later(leg, self.model.release_timeout_s, self.released, leg)
        elif leg.at is not At.RELEASING:
            self.end(leg, "abort", "Aborted by AbortReq.")

    def released(self, leg: RankLeg) -> None:
        if leg.at is At.RELEASING:
            self.end(leg, "abort", "Aborted by AbortReq.")

    # prefill

    def _begin_chunk(self) -> bool:
        """One chunk may hold the end of one prompt and the beginning of the next."""
        budget, pairs = self.model.chunk_tokens, 0.0
        for leg in self._waiting:
            prompt = leg.leg.prompt_ids
            if leg.holding is None:
                taken = self._take(leg)
                if taken is None:
                    break
                leg.holding, leg.cached_tokens = taken
                leg.computed_tokens = leg.cached_tokens
                leg.sink.on_stage("prefilling")
                leg.stats["forward_start"] = self._now_s()
            count = min(budget, len(prompt) - leg.computed_tokens)
            self._chunk.append((leg, count))
            budget, pairs = budget - count, pairs + pairs_of(count, leg.computed_tokens)
            if budget == 0:
                break
        if self._chunk:
            tokens = self.model.chunk_tokens - budget
            self._begin(self.model.chunk_s(tokens, pairs), self._chunk_done)
        return bool(self._chunk)

    def _chunk_done(self) -> None:
        chunk, self._chunk = self._chunk, []
        for leg, count in chunk:
            leg.computed_tokens += count
        if any(leg.kills(self.model.role, leg.computed_tokens, len(chunk)) for leg, _ in chunk):
            self.engine.dies()
            return
        self._apply_aborts()
        for leg, _ in chunk:
            if leg.at is At.WAITING and leg.computed_tokens == len(leg.leg.prompt_ids):
                self._waiting.remove(leg)
                self._prompt_done(leg)
        self._step = None
        self.go_on()

    def _prompt_done(self, leg: RankLeg) -> None:
        leg.stats["forward_end"] = self._now_s()
        if leg.leg.embeds:
            leg.at = At.RUNNING
            leg.sink.on_embedding(vector(leg.leg.prompt_ids, leg.leg.second_at, leg.leg.adapter))
            self.end(leg, "stop")
            return
        leg.state = leg.read
        [token] = leg.makes(1)
        if leg.leg.bootstrap is None:
            leg.at = At.RUNNING
            self._send(leg, [token])
            return
        leg.at = At.TRANSFERRING
        leg.sink.on_stage("transferring", leg.cached_tokens)
        if leg.decode_is_gone:
            self.end(leg, "error", "Aborted by decode-side abort notification.")
        elif leg.link is None:
            self._transferred(leg, token, 0.0)  # to nobody (a canary), or to a decode that will never know
        elif not leg.link.is_open:
            self.end(leg, "error", "NIXL_ERR_REMOTE_DISCONNECT")
        elif not self.engine.loses_a_transfer():
            kv_bytes = len(leg.leg.prompt_ids) * self.model.kv_bytes_per_token
            transfer_s = self.engine.lasting(self.model.transfer_setup_s + kv_bytes / self.model.transfer_bytes_per_s)
            leg.stats |= {"kv_bytes": kv_bytes, "kv_transfer_s": transfer_s}
            # Written by the lane's own thread: it goes on while the scheduler is frozen, and decode is told.
            leg.timer = asyncio.get_running_loop().call_later(transfer_s, self._written, leg, token, transfer_s)

    def _written(self, leg: RankLeg, token: int, transfer_s: float) -> None:
        if leg.at is At.TRANSFERRING and not self.is_dead:
            assert leg.link is not None
            leg.link.send(Landed(leg.room, token))
            self.engine.delivered_to.add(leg.link.life)
            self.do(self._transferred, leg, token, transfer_s)

    def _transferred(self, leg: RankLeg, token: int, transfer_s: float) -> None:
        if leg.at is At.TRANSFERRING:
            leg.stats["transfer_end"] = self._now_s()
            leg.sent_tokens += 1
            leg.put([token], takes_kv=False)
            self.end(leg, "stop" if leg.ends_with([token]) else "length")

    # decode

    def _allocate_first(self) -> bool:
        leg = self._allocating[0]
        if len(self._running) >= self.model.requests_max:
            return False
        taken = self._take(leg)
        if taken is None:
            return False
        leg.holding, _ = taken
        self._allocating.popleft()
        leg.at = At.LANDING
        self.engine.allocated(leg)
        return True

    def timed_out(self, leg: RankLeg, where: At, poll: str) -> None:
        """`poll`: what SGLang calls the place `where`."""
        if leg.at is where:
            self.end(leg, "error", f"Request {leg.leg.id} timed out in KVPoll.{poll}")

    def prefill_lost(self, leg: RankLeg, why: str) -> None:
        if leg.at is At.RELEASING:
            self.released(leg)
        elif leg.at in (At.BOOTSTRAPPING, At.ALLOCATING, At.LANDING):
            self.end(leg, "error", why)

    def _run(self, leg: RankLeg, first_token: int) -> None:
        leg.wait_no_more()
        leg.at = At.RUNNING
        leg.state = fold([first_token], leg.state)
        self._send(leg, [first_token])
        self.go_on()

    def run_on_garbage(self, leg: RankLeg) -> None:
        """Decodes without KV (a canary's fake prefill): its tokens mean nothing."""
        leg.state = leg.read ^ 1
        self._run(leg, following(leg.state, 1, True)[0][0])

    def _step_done(self) -> None:
        self._apply_aborts()
        legs = len(self._running)
        if any(leg.kills(self.model.role, len(leg.leg.prompt_ids) + leg.sent_tokens, legs) for leg in self._running):
            self.engine.dies()
            return
        for leg in list(self._running):
            count = min(self.model.tokens_per_step, leg.tokens_wanted - leg.sent_tokens)
            if not self._has_room_for(leg, count):
                self.end(leg, "error", "Request was retracted: the KV pool is full")
                continue
            self._send(leg, leg.makes(count))
        self._step = None
        self.go_on()

    def _take(self, leg: RankLeg) -> tuple[Holding, int] | None:
        of, tokens = leg.leg, tokens_to_set_aside(len(leg.leg.prompt_ids), leg.tokens_wanted)
        return self.pool.take(of.prompt_ids, tokens, of.adapter, of.salt)

    def _has_room_for(self, leg: RankLeg, count: int) -> bool:
        """Beyond what was set aside at first, an output takes a page when it needs one."""
        beyond = leg.sent_tokens + count - OUTPUT_RESERVED_TOKENS
        if beyond <= 0 or leg.holding is None:
            return True
        page = self.model.page_size
        pages = -(-beyond // page) - max(0, -(-(beyond - count) // page))
        return pages == 0 or self.pool.grow(leg.holding, pages)

    def _send(self, leg: RankLeg, ids: list[int]) -> None:
        leg.sent_tokens += len(ids)
        leg.put(ids, takes_kv=self.model.role is Role.DECODE)
        if leg.ends_with(ids):
            self.end(leg, "stop")
        elif leg.sent_tokens >= leg.tokens_wanted:
            self.end(leg, "length")
        else:
            self._running[leg] = None

    def _tell_cache(self, events: list[Event]) -> None:
        if self.engine.kv is not None and not self.is_dead:
            self.engine.kv.heard(self.index, events, self._begin_anew)

    def _begin_anew(self) -> None:
        asyncio.get_running_loop().call_soon(self.do, self.begin_to_tell)

    # steps

    def _begin(self, duration_s: float, done: Callable[[], None]) -> None:
        duration_s = self.engine.lasting(duration_s)
        self.step_longest_s = max(self.step_longest_s, duration_s)
        self._step_began_s = self._now_s()
        self._step = asyncio.get_running_loop().call_later(duration_s, self.do, done)

    def _apply_aborts(self) -> None:
        aborts, self._aborts = self._aborts, []
        for leg in aborts:
            if not leg.is_over:
                self._abort(leg)

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()
