"""From a violation in a long soak to the fewest requests and faults that still show one.

In:    a failed outcome; out: another failed outcome, smaller, that its seed, request count and strikes bring back
Way:   requests that came after it go first; then all faults but the last one, two, four, ...; then halves of what is
       left, quarters, ... one by one
"""

from __future__ import annotations

from collections.abc import Callable

from disagg.simulation.outcome import Outcome, Strike

Run = Callable[[int, int, list[Strike]], Outcome]  # seed, requests, strikes

RUNS_MAX = 60


def shrink(failed: Outcome, run: Run, runs_max: int = RUNS_MAX) -> Outcome:
    best, runs_left = failed, runs_max

    def fails(requests: int, strikes: list[Strike]) -> bool:
        nonlocal best, runs_left
        if not runs_left:
            return False
        runs_left -= 1
        outcome = run(failed.seed, requests, strikes)
        if outcome.violation:
            best = outcome
        return outcome.violation is not None

    fails(_begun(best), best.strikes)
    last_count, strikes = 1, best.strikes
    while last_count < len(strikes) and not fails(_begun(best), strikes[-last_count:]):
        last_count *= 2
    share = max(1, len(best.strikes) // 2)
    while share:
        at = 0
        while at < len(best.strikes) and runs_left:
            if not fails(_begun(best), best.strikes[:at] + best.strikes[at + share :]):
                at += share
        share //= 2
    return best


def _begun(outcome: Outcome) -> int:
    """A soak stops at its first violation: later requests never began."""
    return min(outcome.requests, sum(outcome.outcomes.values()))
