"""Decides whether an incarnation is sick: twice a second, from its start to its end, busy or idle.

Way:   supervisor -> [Watcher.run] -> host (health of each rank), a prefill's bootstrap server
Out:   `run` returns why the engine is sick, at most some 5 s after it became so
Why:   a living process proves little: a scheduler may hang behind a host that answers, and a host behind a bootstrap
       server that answers. The host watches the progress of its ranks; here the host itself is watched
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from disagg.errors import LegLost
from disagg.plane.messages import RankHealth

LOOK_S = 0.5
RECONNECT_S = 1.0
SILENT_S = 3.0  # a host that has not answered for so long
ROUTE_S = 1.0  # between two looks at the bootstrap server, and the time one may take
ROUTES_MISSED_MAX = 3
LATE_S = 0.5  # we ourselves were held up for this long: the answers may lie unread in our socket

IsRegistered = Callable[[str], Awaitable[bool]]


@dataclass(slots=True)
class Signs:
    """What is known of one engine now."""

    heard_at_s: float  # the host's newest answer, on our clock
    ranks: list[RankHealth] = field(default_factory=list)
    lost: str = ""  # why the connection to the host ended
    routes_missed: int = 0  # in a row


def why_sick(signs: Signs, now_s: float) -> str:
    """Empty while it is well."""
    if signs.lost:
        return f"the connection to its host ended: {signs.lost}"
    if now_s - signs.heard_at_s >= SILENT_S:
        return f"its host has not answered for {SILENT_S:g} s"
    for rank in signs.ranks:
        if rank.sick:
            return f"rank {rank.dp_rank}: {rank.sick}"
    if signs.routes_missed >= ROUTES_MISSED_MAX:
        return f"its bootstrap server missed {signs.routes_missed} looks in a row"
    return ""


class Host(Protocol):
    """The part of a LiveEngine that is needed here."""

    async def health(self, limit_s: float) -> list[RankHealth]: ...

    async def reconnect(self, limit_s: float) -> None: ...


class Watcher:
    """`bootstrap`: host:port of a prefill's bootstrap server, else empty."""

    def __init__(
        self,
        host: Host,
        bootstrap: str,
        is_registered: IsRegistered,
        now_s: Callable[[], float],
    ) -> None:
        self._host, self._bootstrap = host, bootstrap
        self._now_s, self._is_registered = now_s, is_registered
        self.signs = Signs(heard_at_s=now_s())

    async def run(self) -> str:
        """Returns why it is sick, once it is."""
        asking = [asyncio.create_task(self._ask_host())]
        if self._bootstrap:
            asking.append(asyncio.create_task(self._ask_bootstrap()))
        try:
            while not (why := why_sick(self.signs, self._now_s())):
                slept_at_s = self._now_s()
                await asyncio.wait(asking, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
                late_s = self._now_s() - slept_at_s - LOOK_S
                if late_s > LATE_S:
                    self.signs.heard_at_s += late_s
                for task in asking:
                    if task.done():
                        task.result()
            return why
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    async def _ask_host(self) -> None:
        """Ends when the connection has ended, and the host takes no other."""
        while True:
            try:
                self.signs.ranks = await self._host.health(SILENT_S)
            except TimeoutError:
                continue
            except LegLost as error:
                # A machine that stood still for a moment loses all its connections, and no engine is sick for that.
                try:
                    await self._host.reconnect(RECONNECT_S)
                except LegLost:
                    self.signs.lost = error.what
                    return
            self.signs.heard_at_s = self._now_s()
            await asyncio.sleep(LOOK_S)

    async def _ask_bootstrap(self) -> None:
        while True:
            looked_at_s = self._now_s()
            try:
                async with asyncio.timeout(ROUTE_S):
                    is_there = await self._is_registered(self._bootstrap)
            except TimeoutError:
                is_there = False
            if is_there:
                self.signs.routes_missed = 0
            elif self._now_s() - self.signs.heard_at_s < ROUTE_S:  # else the whole host is silent, which tells more
                self.signs.routes_missed += 1
            await asyncio.sleep(max(0.0, looked_at_s + ROUTE_S - self._now_s()))
