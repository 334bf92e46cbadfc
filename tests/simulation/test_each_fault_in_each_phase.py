"""One request, one fault, in one phase: the table of docs/failures.md, row by row.

Two engines a role, deadlines as they are by default. A fault that does not come from the client costs it time and
nothing else; how much is asserted here, and told in the document.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from disagg.coordinator.phases import Phase
from disagg.errors import Cancelled
from disagg.simulation.faults import CELLS, OF_CLIENTS, PHASES, Fault
from disagg.simulation.table import ROWS, SEEDS, strike_once
from tests.todays import todays

PAGE = Path(__file__).parents[2] / "docs" / "failures.md"

# Seconds that a fault may cost a request, in whatever phase it strikes.
COSTS_S = {
    Fault.CRASH: 2.0,  # the connection ends at once; another pair reads the prompt again
    Fault.FREEZE: 6.0,  # found within 5 s
    Fault.HOST_FREEZE: 6.0,
    Fault.DEAD_SCHEDULER: 2.0,
    Fault.PARTITION: 6.0,
    Fault.SLOW: 6.0,  # 15 times slower for 2 s: nothing is lost
    Fault.KV_EXHAUSTED: 10.0,  # for 8 s no page is free: the request waits
    Fault.ENDLESS_TRANSFER: 32.0,  # deadlines.transfer_s, then another pair
    Fault.BROKEN_LANE: 0.5,  # found when the engine rests
    Fault.CUT: 2.0,
    Fault.HALF_OPEN: 12.0,
    Fault.DELAY: 6.0,
    Fault.DUPLICATE: 2.0,
    Fault.STALE: 0.5,
}


def _bound_s(fault: Fault, phase: Phase) -> float:
    waits_s = {Phase.QUEUED: 1.0, Phase.MIGRATING: 3.0}  # for an engine that others keep busy
    return COSTS_S[fault] + waits_s.get(phase, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "phase"), CELLS, ids=[f"{fault.value}-{phase.name}" for fault, phase in CELLS])
def test_one(fault: Fault, phase: Phase) -> None:
    for seed in todays(SEEDS, 1):
        struck = strike_once(fault, phase, seed)
        where = f"seed {seed}: {struck.request.history} {struck.request.facts}"
        if fault in OF_CLIENTS:
            assert struck.request.phase is Phase.CANCELLED, where
            assert struck.error is None or isinstance(struck.error, Cancelled), where
            assert struck.token_ids == struck.wanted_ids[: len(struck.token_ids)], where
        else:
            assert (struck.error, struck.token_ids) == (None, struck.wanted_ids), where
            assert struck.cost_s < _bound_s(fault, phase), f"{struck.cost_s:.2f} s, {where}"


def test_the_page_tells_every_cell_and_nothing_beyond_its_bound() -> None:
    """`python -m disagg.simulation.table` prints what the page has."""
    lines = PAGE.read_text().splitlines()
    assert f"| fault | {' | '.join(phase.name.lower() for phase in PHASES)} |" in lines
    assert set(ROWS) == set(Fault) - OF_CLIENTS
    for fault, row in ROWS.items():
        (found,) = (line for line in lines if line.startswith(f"| {row} |"))
        cells = re.split(r" *\| *", found.strip("| "))[1:]
        for phase, cell in zip(PHASES, cells, strict=True):
            if (fault, phase) in CELLS:
                assert float(cell) < _bound_s(fault, phase), (row, phase)
            else:
                assert cell == "–", (row, phase)
