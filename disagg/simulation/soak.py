"""`python -m disagg.simulation.soak --requests N --seed S [--processes 2] [--shrink]`, or `--changes ROUNDS --seed S`

Way:   `make soak`, CI -> [soak] -> a campaign in each process -> one report
In:    how many requests, and a seed: process k takes an equal share and seed S + k
Out:   a fault x phase table, outcomes, an event hash for each seed, time; exit 1 with the seed and the timeline when
       something did not hold, and with `--shrink` the fewest requests and faults that still show it. With `--changes`
       what operators order goes on in their place (changing.py), and `--models`: of several models (changing_models.py)
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections import Counter

import msgspec

from disagg.coordinator.phases import Phase
from disagg.simulation.campaign import GAP_REQUESTS, run_campaign
from disagg.simulation.changing import Campaign, run_changes
from disagg.simulation.changing_models import ModelsCampaign
from disagg.simulation.faults import CELLS, PHASES, SENSELESS, Fault
from disagg.simulation.outcome import Outcome
from disagg.simulation.shrink import shrink

EVENTS_MIN = 20  # a request, on average


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m disagg.simulation.soak")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--gap", type=int, default=GAP_REQUESTS, help="requests between two faults")
    parser.add_argument("--shrink", action="store_true", help="after a violation: what is the least that shows it?")
    parser.add_argument("--whole-table", action="store_true", help="an empty cell of the table is a failure")
    parser.add_argument("--changes", type=int, default=0, metavar="ROUNDS", help="of what operators order, instead")
    parser.add_argument("--models", action="store_true", help="changes of several models")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        outcome = run_campaign(asked.seed, asked.requests, gap_requests=asked.gap)
        sys.stdout.buffer.write(msgspec.json.encode(outcome))
        return 0
    began_s = time.monotonic()
    say = sys.stdout.write
    if asked.changes:
        rounds = run_changes(asked.seed, asked.changes, ModelsCampaign if asked.models else Campaign)
        say(f"{rounds}\n{time.monotonic() - began_s:.0f} s\n")
        return 1 if rounds.violation else 0
    outcomes = _run(asked)
    say(report(outcomes) + f"\n{time.monotonic() - began_s:.0f} s on {asked.processes} processes\n")
    failed = [outcome for outcome in outcomes if outcome.violation]
    for outcome in failed:
        say(f"\nVIOLATION with seed {outcome.seed}: {outcome.violation}\n")
        if asked.shrink:
            least = shrink(outcome, lambda seed, requests, strikes: run_campaign(seed, requests, strikes))
            strikes = ", ".join(f"{s.fault.value} in {s.phase.name} on {s.index}" for s in least.strikes)
            say(f"the least that shows it: seed {least.seed}, {least.requests} requests, struck by [{strikes}]\n")
            say(f"{least.violation}\n")
    too_few = sum(o.event_count for o in outcomes) < EVENTS_MIN * asked.requests
    has_holes = asked.whole_table and not set(CELLS) <= _cells(outcomes).keys()
    return 1 if failed or too_few or has_holes else 0


def _run(asked: argparse.Namespace) -> list[Outcome]:
    """Each in a process of its own, where the order of sets of strings is fixed too."""
    share, rest = divmod(asked.requests, asked.processes)
    children = []
    for number in range(asked.processes):
        arguments = ["--requests", share + (number < rest), "--seed", asked.seed + number, "--gap", asked.gap]
        command = [sys.executable, "-m", "disagg.simulation.soak", "--child", *map(str, arguments)]
        children.append(subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONHASHSEED": "0"}))
    outcomes = []
    for child in children:
        answer, _ = child.communicate()
        if child.returncode:
            raise SystemExit(f"a soak process ended with status {child.returncode}")
        outcomes.append(msgspec.json.decode(answer, type=Outcome))
    return outcomes


def _cells(outcomes: list[Outcome]) -> Counter[tuple[Fault, Phase]]:
    return Counter((strike.fault, strike.phase) for outcome in outcomes for strike in outcome.strikes)


def report(outcomes: list[Outcome]) -> str:
    cells = _cells(outcomes)
    width = max(len(fault.value) for fault in Fault) + 1
    lines = [" " * width + "".join(f"{phase.name.lower():>14}" for phase in PHASES)]
    for fault in Fault:
        counts = ["-" if (fault, phase) in SENSELESS else str(cells[fault, phase]) for phase in PHASES]
        lines.append(f"{fault.value:<{width}}" + "".join(f"{count:>14}" for count in counts))
    whys: dict[str, list[str]] = {}
    for (fault, phase), why in SENSELESS.items():
        whys.setdefault(why, []).append(f"{fault.value} x {phase.name.lower()}")
    lines += ["", *(f"- {', '.join(where)}: {why}" for why, where in whys.items()), ""]
    for o in outcomes:
        ends = ", ".join(f"{name} {count}" for name, count in sorted(o.outcomes.items()))
        lines.append(
            f"seed {o.seed}, {o.policy}: {o.requests} requests ({ends}), at most {o.live_max} at once, "
            f"{len(o.strikes)} faults, {o.event_count / max(1, o.requests):.1f} events a request, "
            f"{o.virtual_s:.0f} virtual s, event hash {o.event_hash:016x}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
