"""Rounds of what operators order, under load, with faults in between: `disagg.simulation.soak --changes` runs more."""

from __future__ import annotations

import pytest

from disagg.simulation.changing import run_changes
from disagg.simulation.changing_models import ModelsCampaign


@pytest.mark.parametrize(("seed", "rounds"), [(1, 20)])
def test_no_request_fails_by_a_change(seed: int, rounds: int) -> None:
    found = run_changes(seed, rounds)
    assert not found.violation, found
    assert found.rounds == rounds
    assert found.ends["Apply rolled back"], found
    assert found.faults, found
    assert found.requests > 600


def test_no_request_of_any_model_fails_while_one_comes_and_goes() -> None:
    found = run_changes(1, 8, ModelsCampaign)
    assert not found.violation, found
    assert found.faults, found
    assert found.requests > 600


@pytest.mark.slow
def test_forty_rounds_with_several_models() -> None:
    found = run_changes(0, 40, ModelsCampaign)
    assert not found.violation, found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_hundred_rounds(seed: int) -> None:
    found = run_changes(seed, 100)
    assert not found.violation, found
