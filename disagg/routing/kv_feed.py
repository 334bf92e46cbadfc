"""What one engine says of its prefix caches goes into the index; for as long as one connection to it lasts.

Way:   plane -> [KvFeed.on_kv] -> PrefixIndex, by the slots of the engine's endpoints
Owns:  the numbers of the changes it has seen of each rank: what comes twice is left out, and where one is missing all
       is asked for anew, as where something cannot be read; with a pause that grows, should it never end
Cost:  many changes take several turns of the event loop, where `do` says so (in_slices.py)
Fails: never; an endpoint of which nothing is known `tells_cache` no more, and the index has nothing of it
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator

from disagg.kv_events.changes import CLEARED, LOST, REMOVED, STORED, Change, spelt_out
from disagg.kv_events.events import Tier
from disagg.plane.messages import KvChanged, KvHeld, KvStart
from disagg.routing.endpoints import Endpoint, Engine
from disagg.routing.in_slices import at_once
from disagg.routing.prefix_index.index import PrefixIndex

log = logging.getLogger(__name__)

AGAIN_S = 0.1  # before it is asked for anew; twice as long each time,
AGAIN_MAX_S = 60.0  # up to this, after which without asking it is short again


class KvFeed:
    """`ask_again`: the host is to tell all anew. `do`: what is to be done with each message, a step each change; in the
    order of the messages. Of each dp rank: `lag_s`, how long ago its scheduler did what was told
    last; `gaps`, how often its cache was lost sight of."""

    def __init__(
        self,
        engine: Engine,
        index: PrefixIndex,
        block_tokens: int,
        ask_again: Callable[[], None],
        on_clear: Callable[[], None] = lambda: None,
        do: Callable[[Iterator[None]], None] = at_once,
    ) -> None:
        self._engine, self._index, self._block_tokens = engine, index, block_tokens
        self._ask_again, self._on_clear, self._do = ask_again, on_clear, do
        self._is_open = True
        self._asking: asyncio.TimerHandle | None = None
        self._pause_s, self._asked_at_s = 0.0, 0.0
        self._next: dict[int, int] = {}  # dp rank -> the number of the change that comes next
        self.is_whole = False  # all that the ranks held when it was asked for has come
        self.why_not = "it has not answered yet"
        self.gaps: dict[int, int] = {}
        self.lag_s: dict[int, float] = {}

    def close(self) -> None:
        """The connection is gone; its slots may be others' at once."""
        self._is_open = False
        self._ask_no_more()

    def on_kv(self, message: KvStart | KvHeld | KvChanged) -> None:
        self._do(self._take_in(message))

    def _take_in(self, message: KvStart | KvHeld | KvChanged) -> Iterator[None]:
        if not self._is_open:
            return  # it waited for its turn when the connection ended
        try:
            match message:
                case KvStart():
                    self._start(message)
                case KvHeld():
                    yield from self._apply(message.dp_rank, message.changes)
                    self.is_whole |= message.is_last
                case KvChanged():
                    yield from self._changed(message)
        except Exception as error:  # noqa: BLE001 - what cannot be read costs the index, never the requests that run there
            log.warning("%s: its cache events cannot be read: %r", self._engine.life, error)
            self._forget_all(f"its events cannot be read: {error!r}")
            self._ask_soon()

    def _ask_soon(self) -> None:
        if self._asking is None:
            loop = asyncio.get_running_loop()
            was_long_ago = loop.time() - self._asked_at_s > AGAIN_MAX_S
            self._pause_s = AGAIN_S if was_long_ago or not self._pause_s else min(2 * self._pause_s, AGAIN_MAX_S)
            self._asking = loop.call_later(self._pause_s, self._ask)

    def _ask(self) -> None:
        self._asking, self._asked_at_s = None, asyncio.get_running_loop().time()
        self._ask_again()

    def _ask_no_more(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None

    def _endpoint(self, dp_rank: int) -> Endpoint:
        if dp_rank < 0:
            raise IndexError(f"there is no dp rank {dp_rank}")
        return self._engine.endpoints[dp_rank]

    def _start(self, start: KvStart) -> None:
        self._ask_no_more()
        self._forget_all(start.why_not)
        if start.block_tokens not in (0, self._block_tokens):
            self.why_not = f"its KV blocks have {start.block_tokens} tokens, and ours {self._block_tokens}"
        if self.why_not:
            return
        self._next = dict(start.sequences)
        for dp_rank in self._next:
            self._endpoint(dp_rank).tells_cache = True

    def _changed(self, changed: KvChanged) -> Iterator[None]:
        if self.why_not:
            return
        dp_rank, begins, ends = changed.dp_rank, changed.begins, changed.begins + len(changed.changes)
        expected = self._next.get(dp_rank)
        if expected is None and changed.changes[0].kind == CLEARED:
            expected = begins  # a rank that has just begun to tell
        if expected is not None and ends <= expected:
            return  # it is known already
        if begins != expected:
            log.warning("%s/%d: cache events before %d are missing", self._engine.life, dp_rank, begins)
            self._lose(dp_rank)
            self._forget_all("events were missing; it is asked to tell all anew")
            self._ask_soon()
            return
        self._next[dp_rank] = ends
        self.lag_s[dp_rank] = changed.lag_s
        yield from self._apply(dp_rank, changed.changes)

    def _apply(self, dp_rank: int, changes: Iterable[Change]) -> Iterator[None]:
        if self.why_not:
            return
        index, endpoint = self._index, self._endpoint(dp_rank)
        slot = endpoint.slot
        for kind, tier, path, count in spelt_out(changes):
            if kind == STORED:
                index.store(slot, path, tier, count)
            elif kind == CLEARED:
                self._clear(slot)
                endpoint.tells_cache = True
            elif kind == LOST:
                self._lose(dp_rank)
            elif kind != REMOVED:
                raise ValueError(f"nobody knows what {kind!r} is")
            elif tier == Tier.HOST:  # it is gone
                index.cut(slot, path, len(path) - count, Tier.DEVICE | Tier.HOST)
            else:  # host memory has it still
                index.store(slot, path, Tier.HOST)
                index.cut(slot, path, len(path) - count, Tier.DEVICE)
            yield
            if not self._is_open:
                return  # the slot may be another's already

    def _lose(self, dp_rank: int) -> None:
        endpoint = self._endpoint(dp_rank)
        self.gaps[dp_rank] = self.gaps.get(dp_rank, 0) + 1
        self._clear(endpoint.slot)
        endpoint.tells_cache = False

    def _clear(self, slot: int) -> None:
        self._index.clear(slot)
        self._on_clear()

    def _forget_all(self, why_not: str) -> None:
        self.why_not, self.is_whole = why_not, False
        self._next.clear()
        for endpoint in self._engine.endpoints:
            self._clear(endpoint.slot)
            endpoint.tells_cache = False
