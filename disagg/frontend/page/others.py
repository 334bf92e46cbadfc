"""What the other frontends add to a page of this one: each counts its own requests alone.

Way:   Feed, each second -> [Others] -> peers.py =frames=> another frontend's Feed -> a Part
Out:   the newest Part of each that has answered lately, and who has not: `silent`
Owns:  one Part a frontend. A Part is bounded: SHOWN requests in a list, a row for each rank that has done something
Fails: never; a frontend that does not answer for SILENT_S is told as such, and adds nothing
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from disagg.frontend.page.meter import Sample
from disagg.frontend.page.story import Chapter

ANSWER_S = 0.9  # of a tick: later answers would hold it up
SILENT_S = 3.0

Row = dict[str, Any]


class Lists(msgspec.Struct, frozen=True):
    """Requests that a caller may see (rows.py)."""

    owner: bytes | None
    live: list[Row]
    ended: list[Row]


class Part(msgspec.Struct, frozen=True):
    """One frontend's last whole second, and its requests now. Rates are per second."""

    sample: Sample
    first_tokens_ms: list[float]  # sorted
    phases: dict[str, int]
    made: list[tuple[str, int, int]]  # an engine's life, dp rank, tokens
    read: list[tuple[str, int, int]]
    story: list[Chapter]  # of it alone
    lists: list[Lists]


Ask = Callable[[Sequence[bytes | None], float], Awaitable[dict[int, Part | None]]]  # owners, limit: by frontend


class Others:
    def __init__(self, ask: Ask, now_s: Callable[[], float]) -> None:
        self._ask, self._now_s = ask, now_s
        self._heard_s: dict[int, float] = {}  # frontend -> when it last answered, or was first asked
        self._parts: dict[int, Part] = {}

    async def look(self, owners: Sequence[bytes | None]) -> None:
        """Takes ANSWER_S at the most."""
        began_s = self._now_s()
        answers = await self._ask(owners, ANSWER_S)
        self._heard_s = {number: self._heard_s.get(number, began_s) for number in answers}
        for number, part in answers.items():
            if part is not None:
                self._heard_s[number], self._parts[number] = self._now_s(), part

    def forget(self) -> None:
        """Nobody looks any more."""
        self._heard_s, self._parts = {}, {}

    @property
    def parts(self) -> dict[int, Part]:
        silent = self.silent
        return {n: part for n, part in self._parts.items() if n in self._heard_s and n not in silent}

    @property
    def silent(self) -> list[int]:
        late_s = self._now_s() - SILENT_S
        return sorted(number for number, at_s in self._heard_s.items() if at_s < late_s)
