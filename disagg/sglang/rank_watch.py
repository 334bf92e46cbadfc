"""Watches an engine's scheduler processes from the host, twice a second, and keeps the newest verdict.

Way:   beats of the schedulers, /proc -> [RankWatch.sample] -> rank_health.py -> SGLangEngine.health
Owns:  what was seen before: since when a process is stopped, its CPU time when its loop last came round
Fails: never, whatever a scheduler does; a process that cannot be read counts as gone
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from disagg.plane.messages import ProcessSample, RankHealth
from disagg.process_tree import children
from disagg.sglang.heartbeat import Beat, read_beats
from disagg.sglang.rank_health import judge

LOOK_S = 0.5
# A look this late means that this process was stopped or had no core; that time is not held against ranks.
BLIND_S = 2.0
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class ProcessLook(NamedTuple):
    state: str  # "" when there is no such process
    # CPU time of the main thread (NIXL's progress thread uses CPU whatever the scheduler does) and of child processes
    # (ptxas, nvcc: they compile kernels while the scheduler waits).
    cpu_s: float


@dataclass(slots=True)
class _Watched:
    beat_at_s: float
    since_s: float  # when we first looked after that beat
    cpu_s: float  # the CPU time at that look
    stopped_since_s: float | None = None


class RankWatch:
    """`others`: what is known of the engine's schedulers on other nodes."""

    def __init__(
        self,
        folder: Path,
        *,
        now_s: Callable[[], float] = time.monotonic,
        process: Callable[[int], ProcessLook] | None = None,
        others: Callable[[], list[ProcessSample]] = list,
    ) -> None:
        self._folder, self._now_s, self._process = folder, now_s, process or look_at_process
        self._others = others
        self._watched: dict[int, _Watched] = {}
        self._looked_at_s = self._awake_since_s = now_s()
        self._rounds_at_s: dict[int, float] = {}
        self.samples: list[ProcessSample] = []  # of this node
        self.health: list[RankHealth] = []

    def sample(self) -> None:
        now_s = self._now_s()
        if now_s - self._looked_at_s > BLIND_S:
            self._awake_since_s = now_s
            self._watched.clear()
        self._looked_at_s = now_s
        beats = read_beats(self._folder)
        self.samples = [self._sight(beat, now_s) for beat in beats]
        others = self._others()
        self._rounds_at_s = {one.dp_rank: now_s - one.beat_age_s for one in others}
        self._rounds_at_s |= {int(beat.dp_rank): beat.at_s for beat in beats}
        self.health = judge([*self.samples, *others])

    def came_round_at_s(self, dp_rank: int) -> float:
        """When the rank's loop last came round, as of the newest look (monotonic seconds)."""
        return self._rounds_at_s.get(dp_rank, 0.0)

    def _sight(self, beat: Beat, now_s: float) -> ProcessSample:
        pid = int(beat.pid)
        state, cpu_s = self._process(pid)
        kept = self._watched.get(pid)
        if kept is None or kept.beat_at_s != beat.at_s:
            stopped_since_s = kept.stopped_since_s if kept else None
            kept = self._watched[pid] = _Watched(beat.at_s, now_s, cpu_s, stopped_since_s)
        if state not in ("T", "t"):
            kept.stopped_since_s = None
        elif kept.stopped_since_s is None:
            kept.stopped_since_s = now_s
        return ProcessSample(
            dp_rank=int(beat.dp_rank),
            group=int(beat.group),
            beat_age_s=max(0.0, now_s - max(beat.at_s, self._awake_since_s)),
            batch_tokens=int(beat.batch_tokens),
            step_longest_s=beat.step_longest_s,
            step_longest_tokens=int(beat.step_longest_tokens),
            steps=int(beat.steps),
            state=state,
            stopped_s=0.0 if kept.stopped_since_s is None else now_s - kept.stopped_since_s,
            watched_s=now_s - kept.since_s,
            cpu_s=cpu_s - kept.cpu_s,
        )


def look_at_process(pid: int) -> ProcessLook:
    """Not psutil's: it tells one thread's CPU time by reading all of them, and children's for a whole process only."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/stat").read_text()
    except OSError:
        return ProcessLook("", 0.0)
    state, *fields = text.rpartition(")")[2].split()  # its name, in brackets, may hold anything
    own_s = sum(map(int, fields[10:14])) * _TICK_S  # user, system, and both of children that have ended
    return ProcessLook(state, own_s + sum(look_at_process(child).cpu_s for child in children(pid)))
