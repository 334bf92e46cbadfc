"""Decides whether a dp rank makes progress, from samples of its scheduler processes.

Way:   beats and /proc -> rank_watch.py -> [judge] -> RankHealth -> frontends
In:    one ProcessSample a scheduler process; out: one RankHealth a dp rank. Nothing here looks, waits or remembers
Why:   a prefill chunk that computes for 10 s is well; a process that sleeps, is stopped or spins for ever is not.
       A scheduler that computes uses CPU time, also on a GPU, as it spins while it waits for the device. While kernels
       are compiled, it is the compiler, a child process, that uses it
"""

from __future__ import annotations

from collections.abc import Iterable

from disagg.plane.messages import ProcessSample, RankHealth

GONE = ("", "Z", "X")
STOPPED_S = 1.0
# A loop that does not come round and uses no CPU. An idle one comes round every second (SGLang's IdleSleeper).
ASLEEP_S, ASLEEP_CPU_SHARE = 3.0, 0.05
# A loop that computes: three times the longest step so far, in proportion to the tokens, and never below this.
SLOW_S, SLOW_STEPS = 5.0, 3.0
# Before the first steps there is nothing to compare with, and on a GPU each of them may compile its kernels, prefill's
# after some seconds, and the first decode's for longer than that would allow (seen: 8.3 s after 2.7 s).
FIRST_STEPS, FIRST_STEP_S = 4, 60.0


def judge(samples: Iterable[ProcessSample]) -> list[RankHealth]:
    """One RankHealth a dp rank, in order. A rank is sick if any of its processes is; the reason is that of a process
    that is gone or stopped, if there is one."""
    seen = sorted(samples, key=lambda one: (one.dp_rank, one.state not in GONE, -one.stopped_s))
    ranks: dict[int, list[ProcessSample]] = {}
    for one in seen:
        ranks.setdefault(one.dp_rank, []).append(one)
    return [
        RankHealth(
            dp_rank,
            next(filter(None, (_sickness(p, [o for o in seen if o.group == p.group]) for p in processes)), ""),
            max(p.beat_age_s for p in processes),
            max(p.step_longest_s for p in processes),
        )
        for dp_rank, processes in ranks.items()
    ]


def _sickness(one: ProcessSample, group: list[ProcessSample]) -> str:
    if one.state in GONE:
        return "its scheduler process is gone"
    if one.stopped_s > STOPPED_S:
        return f"its scheduler process has been stopped for {one.stopped_s:.1f} s"
    patience_s = max(map(_patience_s, group))
    if one.beat_age_s > patience_s:
        return f"its loop has not come round for {one.beat_age_s:.1f} s, and {patience_s:.1f} s would be long"
    if one.beat_age_s > ASLEEP_S and one.steps and not any(map(_computes, group)):
        return f"its loop has not come round for {one.beat_age_s:.1f} s, and it computes nothing"
    return ""


def _patience_s(one: ProcessSample) -> float:
    if one.steps < FIRST_STEPS:
        return FIRST_STEP_S
    ratio = max(1.0, one.batch_tokens / max(1, one.step_longest_tokens))
    return max(SLOW_S, SLOW_STEPS * one.step_longest_s * ratio)


def _computes(one: ProcessSample) -> bool:
    """Whether the process works, or waits for a core or a disk; neither is sleep."""
    return one.state in ("R", "D") or one.cpu_s >= ASLEEP_CPU_SHARE * one.watched_s
