"""Tells one connection what the engine's prefix caches hold: first all, then what changes.

Way:   KvBook -> [KvTelling] -> Connection -> a frontend
Owns:  the frames of a snapshot, one after the other with a pause between: tokens go before the next one
Fails: a peer that falls behind by BEHIND_BYTES is told nothing more until it has read all, and then all anew. So what
       waits for it is bounded
"""

from __future__ import annotations

import asyncio

from disagg.kv_events.book import KvBook
from disagg.kv_events.changes import Change
from disagg.plane import messages as m
from disagg.plane.framing import Connection

BEHIND_BYTES = 4 << 20
SNAPSHOT_BYTES = 256 << 10  # the next frame of a snapshot waits until no more than these are unsent
PAUSE_S = 0.002


class KvTelling:
    """`begin` once. It goes on until `end`, or until the connection is lost."""

    def __init__(self, book: KvBook, connection: Connection, incarnation: int) -> None:
        self._book, self._connection, self._incarnation = book, connection, incarnation
        self._task: asyncio.Task[None] | None = None
        self._is_behind = asyncio.Event()

    def begin(self) -> None:
        """A second time: all anew."""
        self.end()
        self._task = asyncio.get_running_loop().create_task(self._tell_all(), name="tell what is cached")

    def end(self) -> None:
        self._book.unsubscribe(self)
        if self._task is not None:
            self._task.cancel()

    def changed(self, dp_rank: int, begins: int, changes: list[Change], lag_s: float) -> None:
        if self._connection.unsent_bytes > BEHIND_BYTES:
            self._book.unsubscribe(self)
            self._is_behind.set()
        else:
            self._connection.send(m.encode(m.KvChanged(dp_rank, begins, changes, lag_s)))

    async def _tell_all(self) -> None:
        book = self._book
        while True:
            self._is_behind.clear()
            frames = book.subscribe(self)
            self._send(m.KvStart(self._incarnation, book.block_tokens, book.sequences))
            for dp_rank, changes in frames:
                self._send(m.KvHeld(dp_rank, changes))
                await self._until_unsent(SNAPSHOT_BYTES)
                if self._is_behind.is_set():
                    break
            else:
                self._send(m.KvHeld(0, [], is_last=True))
                await self._is_behind.wait()
            await self._until_unsent(0)

    async def _until_unsent(self, limit_bytes: int) -> None:
        await asyncio.sleep(0)
        while self._connection.unsent_bytes > limit_bytes:  # noqa: ASYNC110 - nobody tells when it is sent
            await asyncio.sleep(PAUSE_S)

    def _send(self, message: m.ToFrontend) -> None:
        self._connection.send(m.encode(message))
