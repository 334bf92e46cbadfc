"""The hosts of one engine over several nodes hold together: all of them live, or none.

Way:   another host [Report] =request plane=> the first host [Members] -> its watch and its legs
In:    what the other hosts see of their own schedulers, and the stages and prefix caches those tell
Out:   the first host speaks for the whole engine; nobody else has to talk to the others
Fails: a host that goes, or says nothing for SILENT_S, is the end of every other: `on_gone` is called once, and the host
       ends itself. So a cable that was pulled leaves no half of an engine on either side of it
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from disagg.errors import LegLost
from disagg.kv_events.book import KvBook
from disagg.plane import messages as m
from disagg.plane.client import PlaneClient

log = logging.getLogger(__name__)

REPORT_S = 0.5
SILENT_S = 3.0
LATE_S = 0.5  # a timer this late means that our own process was held up, not that the others are silent
BEHIND_BYTES = 8 << 20  # unsent; schedulers are not heard until there are fewer
CONNECT_AGAIN_S = 0.2  # the first host listens once its own schedulers are up


@dataclass(slots=True)
class _Other:
    samples: list[m.ProcessSample]
    heard_at_s: float


class Members:
    """What the first host knows of the others. `count`: hosts of the engine, the first one included; `kv`: what all
    ranks have cached."""

    def __init__(
        self,
        count: int,
        on_stage: Callable[[str, str, int | None], None],
        on_gone: Callable[[str], None],
        now_s: Callable[[], float] = time.monotonic,
        kv: KvBook | None = None,
    ) -> None:
        self._count, self._on_stage, self._on_gone, self._now_s, self._kv = count, on_stage, on_gone, now_s, kv
        self._others: dict[int, _Other] = {}
        self._complete = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None

    async def joined(self) -> None:
        """Returns once every host has reported; from then on each must go on reporting."""
        await self._complete.wait()
        self._watching = asyncio.get_running_loop().create_task(self._watch(), name="the other hosts")

    def saw(self, report: m.MemberSamples) -> None:
        self._others[report.member] = _Other(report.samples, self._now_s())
        if len(self._others) == self._count - 1:
            self._complete.set()

    def came_to(self, stage: m.MemberStage) -> None:
        self._on_stage(stage.leg_id, stage.name, stage.cached_tokens)

    def said(self, telling: m.MemberKv, again: Callable[[], None]) -> None:
        if self._kv is not None:
            self._kv.hear(telling.dp_rank, telling.telling, again)

    def left(self, member: int, why: str) -> None:
        self._on_gone(f"node {member} of this engine is gone: {why}")

    def samples(self) -> list[m.ProcessSample]:
        """The newest samples of all other hosts, with the age of each beat as of now.

        Time since a host's last report counts for REPORT_S at most: a late report does not mean a silent scheduler.
        """
        now_s = self._now_s()
        return [
            one._replace(beat_age_s=one.beat_age_s + min(now_s - other.heard_at_s, REPORT_S))
            for other in self._others.values()
            for one in other.samples
        ]

    async def _watch(self) -> None:
        while True:
            slept_at_s = self._now_s()
            await asyncio.sleep(REPORT_S)
            now_s = self._now_s()
            was_late = now_s - slept_at_s - REPORT_S > LATE_S  # reports may lie unread in our sockets
            for member, other in self._others.items():
                if was_late:
                    other.heard_at_s = now_s
                elif now_s - other.heard_at_s > SILENT_S:
                    self.left(member, f"it has said nothing for {SILENT_S:g} s")
                    return


class Report:
    """In every other host: keeps the first one informed until one of the two is gone."""

    def __init__(self, member: int, first: PlaneClient, samples: Callable[[], list[m.ProcessSample]]) -> None:
        self._member, self._first, self._samples = member, first, samples

    @classmethod
    async def begin(
        cls,
        member: int,
        address: str,
        incarnation: int,
        secret: bytes,
        samples: Callable[[], list[m.ProcessSample]],
        on_gone: Callable[[str], None],
        on_peer_gone: Callable[[str], None],
        on_kv_again: Callable[[int], None] = lambda _dp_rank: None,
    ) -> Report:
        """Tries until the first host listens; whoever starts the engine limits the time."""
        reports: list[Report] = []

        def lost(why: str) -> None:
            if reports:  # else the next try may succeed
                on_gone(f"the first node of this engine is gone: {why}")

        while True:
            first = PlaneClient(
                address,
                incarnation,
                secret,
                lost,
                on_peer_gone=on_peer_gone,
                on_kv_again=on_kv_again,
                silent_s=SILENT_S,
            )
            try:
                await first.connect()
            except LegLost as error:
                log.info("%s", error)
                await asyncio.sleep(CONNECT_AGAIN_S)
            else:
                reports.append(cls(member, first, samples))
                reports[0]._tell()
                return reports[0]

    def stage(self, leg_id: str, name: str, cached_tokens: int | None) -> None:
        self._first.tell(m.MemberStage(leg_id, name, cached_tokens))

    def cached(self, dp_rank: int, telling: bytes) -> bool:
        """Hands on what a scheduler says of its prefix cache; False where the first host does not keep up."""
        self._first.tell(m.MemberKv(dp_rank, telling))
        return self._first.unsent_bytes < BEHIND_BYTES

    def _tell(self) -> None:
        self._telling = asyncio.get_running_loop().call_later(REPORT_S, self._tell)
        self._first.tell(m.MemberSamples(self._member, self._samples()))
