"""What all dp ranks of an engine hold, as its host keeps it from their birth, for frontends that come and go.

Way:   schedulers' Tellings -> [KvBook.hear] -> a RankCache each -> every subscriber, within GATHER_S
In:    the tokens of a KV block and the deployment's secret: what leaves the host are keyed hashes
Owns:  the ranks' caches, and the numbers of their changes: a rank's `sequence` counts them, its `epoch` how often it
       had to begin anew
Fails: a rank that says what does not fit, or holds more than BLOCKS_MAX, is forgotten and asked to begin anew; what
       frontends hear of that is `lost`
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from disagg.kv_events.blocks import BlockHasher
from disagg.kv_events.changes import LOST, Change
from disagg.kv_events.events import Begun, Event, decode_telling
from disagg.kv_events.held import Confused
from disagg.kv_events.rank import RankCache

log = logging.getLogger(__name__)

GATHER_S = 0.02
GATHERED_MAX = 1000  # changes of a rank; more are told at once
BLOCKS_MAX = 4_000_000  # of one rank: a gigabyte of ours


class Subscriber(Protocol):
    def changed(self, dp_rank: int, begins: int, changes: list[Change], lag_s: float) -> None:
        """`begins`: the number of the first change. `lag_s`: how long ago the scheduler did the oldest of them."""


@dataclass(slots=True)
class _Rank:
    cache: RankCache
    again: Callable[[], None] = lambda: None
    is_known: bool = False
    epoch: int = 0
    sequence: int = 0  # changes that subscribers have been told
    gathered: list[Change] = field(default_factory=list)
    happened_s: float = 0.0  # the oldest that is gathered


class KvBook:
    """`adapter_of`: the adapter that a scheduler's word for one means (SGLang's have an id for each time one is
    loaded)."""

    def __init__(self, secret: bytes, block_tokens: int, now_s: Callable[[], float] = time.monotonic) -> None:
        self.block_tokens = block_tokens
        self.adapter_of: Callable[[str], str] = lambda adapter: adapter
        self._hasher, self._now_s = BlockHasher(secret, block_tokens), now_s
        self._ranks: dict[int, _Rank] = {}
        self._subscribers: dict[Subscriber, None] = {}
        self._is_due = False

    @property
    def sequences(self) -> dict[int, int]:
        """How many changes have been told, of each dp rank whose cache is known."""
        return {dp_rank: rank.sequence for dp_rank, rank in self._ranks.items() if rank.is_known}

    @property
    def epochs(self) -> dict[int, int]:
        """How often each dp rank has begun."""
        return {dp_rank: rank.epoch for dp_rank, rank in self._ranks.items()}

    def blocks(self, dp_rank: int) -> int:
        return self._ranks[dp_rank].cache.blocks if dp_rank in self._ranks else 0

    def hear(self, dp_rank: int, packed: bytes, again: Callable[[], None]) -> None:
        """`packed`: a Telling; empty: that rank is not heard any more. `again` makes it begin anew: it is called where
        what it says cannot be used."""
        if not packed:
            self._forget(dp_rank, "it is not heard any more")
            return
        try:
            telling = decode_telling(packed)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._forget(dp_rank, f"what it says cannot be read: {error}; it begins anew")
            again()
            return
        self.heard(dp_rank, telling.events, again, at_s=telling.at_s)

    def heard(self, dp_rank: int, events: Sequence[Event], again: Callable[[], None], *, at_s: float = 0.0) -> None:
        """The same, of events that need not be read first."""
        rank = self._ranks.get(dp_rank)
        if begins := bool(events) and isinstance(events[0], Begun):
            if rank is None:
                rank = self._ranks[dp_rank] = _Rank(RankCache(self._hasher, lambda word: self.adapter_of(word)))
            rank.epoch += 1
        if rank is None or not (begins or rank.is_known):
            return  # it has been asked to begin anew, or is too large
        rank.again = again
        try:
            rank.is_known = True
            changes = rank.cache.hear(events)
        except Exception as error:  # noqa: BLE001 - ids that are no ids, more tokens than there are: whatever does not fit
            what = str(error) if isinstance(error, Confused) else f"what it says does not fit: {error!r}"
            self._forget(dp_rank, f"{what}; it begins anew")
            again()
            return
        if rank.cache.blocks > BLOCKS_MAX:
            self._forget(dp_rank, f"it has more than {BLOCKS_MAX} blocks; nobody will know which")
            return
        self._gather(dp_rank, rank, changes, at_s or self._now_s())

    def begin_anew(self) -> None:
        """What words for adapters mean has changed: all ranks are to tell anew what they hold."""
        for dp_rank, rank in self._ranks.items():
            if rank.is_known:
                self._forget(dp_rank, "adapters have changed; it begins anew")
                rank.again()

    def subscribe(self, subscriber: Subscriber) -> Iterator[tuple[int, list[Change]]]:
        """From now on it is told all changes. Returns what there is already, a frame at a time: (dp rank, changes)."""
        self.flush()
        self._subscribers[subscriber] = None
        return self._snapshot(list(self._ranks))

    def unsubscribe(self, subscriber: Subscriber) -> None:
        self._subscribers.pop(subscriber, None)

    def flush(self) -> None:
        """Tells what is gathered."""
        self._is_due = False
        for dp_rank, rank in self._ranks.items():
            self._tell(dp_rank, rank)

    def _snapshot(self, dp_ranks: list[int]) -> Iterator[tuple[int, list[Change]]]:
        for dp_rank in dp_ranks:
            for changes in self._ranks[dp_rank].cache.snapshot():
                yield dp_rank, changes

    def _forget(self, dp_rank: int, why: str) -> None:
        rank = self._ranks.get(dp_rank)
        if rank is None or not rank.is_known:
            return
        log.warning("what dp rank %d has cached is forgotten: %s", dp_rank, why)
        rank.is_known = False
        rank.cache.clear()
        self._gather(dp_rank, rank, [Change(LOST)], self._now_s())

    def _gather(self, dp_rank: int, rank: _Rank, changes: list[Change], happened_s: float) -> None:
        if not changes:
            return
        if not rank.gathered:
            rank.happened_s = happened_s
        rank.gathered += changes
        if len(rank.gathered) > GATHERED_MAX:
            self._tell(dp_rank, rank)
        elif not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_later(GATHER_S, self.flush)

    def _tell(self, dp_rank: int, rank: _Rank) -> None:
        if not rank.gathered:
            return
        changes, rank.gathered = rank.gathered, []
        begins, lag_s = rank.sequence, max(0.0, self._now_s() - rank.happened_s)
        rank.sequence += len(changes)
        for subscriber in list(self._subscribers):
            subscriber.changed(dp_rank, begins, changes, lag_s)
