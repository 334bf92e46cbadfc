"""What is known of a rank fades where it is not measured, and one that is gone counts no more."""

from __future__ import annotations

import pytest

from disagg.routing.cost.busy import GONE_S, SILENT_S, Busy
from disagg.routing.cost.costs import Costs
from disagg.routing.cost.factors import FADE_S, Factors
from disagg.routing.cost.prior import Prior
from disagg.routing.endpoints import RankId
from disagg.routing.observations import Read

ONE, OTHER = (RankId(name, f"{name}#1", 0) for name in ("prefill-0", "prefill-1"))


def test_a_factor_fades_towards_the_law_while_nothing_is_measured() -> None:
    factors = Factors()
    for second in range(40):
        factors.note(ONE, 3.0, 1.0, float(second))
        factors.note(OTHER, 0.3, 1.0, float(second))
    slow, quick = factors.of(ONE), factors.of(OTHER)
    assert slow == pytest.approx(3.0, rel=0.1)
    assert quick == pytest.approx(0.3, rel=0.1)
    factors.age(39.0 + FADE_S)
    assert 1.15 < factors.of(ONE) < slow**0.5
    assert quick**0.5 < factors.of(OTHER) < 0.85
    factors.age(39.0 + 10 * FADE_S)
    assert (factors.of(ONE), factors.of(OTHER), factors.uneven) == (1.0, 1.0, {})


def test_the_older_what_is_known_the_more_a_measurement_counts_but_never_alone() -> None:
    soon, late = Factors(), Factors()
    for factors, next_s in ((soon, 1.0), (late, 1000.0)):
        factors.note(ONE, 1.0, 1.0, 0.0)
        factors.note(ONE, 4.0, 1.0, next_s)
    assert soon.of(ONE) == 1.0  # within 15 %: one measurement among others
    assert late.of(ONE) == pytest.approx(2.0)


def test_a_rank_that_has_told_nothing_for_long_is_idle_and_then_forgotten() -> None:
    busy = Busy()
    busy.note(ONE, 9.0, 10.0, 100.0)
    busy.note(OTHER, 1.0, 10.0, 100.0)
    assert (busy.of(ONE), busy.mean) == (pytest.approx(0.9), pytest.approx(0.5))
    busy.age(100.0 + SILENT_S)
    assert busy.of(ONE) == pytest.approx(0.9)
    busy.note(OTHER, 1.0, 10.0, 101.0 + SILENT_S)
    busy.age(101.0 + SILENT_S)
    assert (busy.of(ONE), busy.of(OTHER)) == (0.0, pytest.approx(0.1))
    assert busy.mean == pytest.approx(0.05)
    busy.note(OTHER, 1.0, 10.0, 100.0 + GONE_S)
    busy.age(101.0 + GONE_S)
    assert busy.mean == pytest.approx(busy.of(OTHER))
    busy.age(1000.0 + GONE_S)
    assert busy.mean == 0.0


def test_a_rank_that_reads_a_long_prompt_is_busy_all_the_time() -> None:
    """Nothing is told of a prompt before it is read, which may be minutes."""
    busy = Busy()
    busy.note(ONE, 1.0, 10.0, 100.0)
    busy.note(OTHER, 1.0, 10.0, 100.0)
    busy.age(110.0, {ONE})
    assert (busy.of(ONE), busy.of(OTHER)) == (pytest.approx((0.75 + 10) / (7.5 + 10)), pytest.approx(0.1))
    for now_s in range(110, 500):
        busy.age(now_s, {ONE})
    assert (busy.of(ONE), busy.of(OTHER)) == (pytest.approx(1.0, abs=0.01), 0.0)
    busy.note(ONE, 400.0, 400.0, 500.0)
    assert busy.of(ONE) == pytest.approx(1.0, abs=0.01)
    busy.age(500.0 + 2 * SILENT_S)
    assert busy.of(ONE) == 0.0, "it has read it, and nothing more lies before it"


def test_costs_see_to_that_by_their_own_clock() -> None:
    clock = [0.0]
    costs = Costs(Prior(), lambda: clock[0])
    for second in range(60):
        clock[0] = float(second)
        for rank, seconds in ((ONE, 0.6), (OTHER, 0.2)):
            costs.observe(Read(rank, 1, 2000, 2e6, seconds, 1.0))
    slower = costs.read_s(ONE, 2000, 0) / costs.read_s(OTHER, 2000, 0)
    assert slower > 2
    assert costs.busy.mean > 0.3
    clock[0] += 600.0
    costs.age()
    assert costs.read_s(ONE, 2000, 0) == costs.read_s(OTHER, 2000, 0)
    assert costs.busy.mean == 0.0
