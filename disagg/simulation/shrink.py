"""From a violation in a long soak to the fewest requests and faults that still show one.

In:    a failed outcome; out: another failed outcome, smaller, that its seed, request count and strikes bring back
Way:   requests after the one it was seen on go first; then faults, half of them, a quarter, ... one by one
"""

from __future__ import annotations

from collections.abc import Callable

from disagg.simulation.campaign import Outcome, Strike

Run = Callable[[int, int, list[Strike]], Outcome]  # seed, requests, strikes

RUNS_MAX = 60


def shrink(failed: Outcome, run: Run, runs_max: int = RUNS_MAX) -> Outcome:
    runs_left = runs_max

    def fails(requests: int, strikes: list[Strike]) -> Outcome | None:
        nonlocal runs_left
        if not runs_left:
            return None
        runs_left -= 1
        outcome = run(failed.seed, requests, strikes)
        return outcome if outcome.violation else None

    best = failed
    last = max([best.violation.index if best.violation else 0, *(strike.index for strike in best.strikes)])
    if best.violation and best.violation.index >= 0:
        last = best.violation.index
    best = fails(last + 1, [strike for strike in best.strikes if strike.index <= last]) or best
    share = max(1, len(best.strikes) // 2)
    while True:
        at = 0
        while at < len(best.strikes):
            fewer = fails(best.requests, best.strikes[:at] + best.strikes[at + share :])
            if fewer is not None:
                best = fewer
            else:
                at += share
        if share == 1:
            break
        share = max(1, share // 2)
    last = max([best.violation.index if best.violation else 0, *(strike.index for strike in best.strikes)])
    return fails(last + 1, best.strikes) or best
