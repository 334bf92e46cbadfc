"""When a rank is sick: gone, stopped, asleep, or far slower than ever; and when it only works hard."""

from __future__ import annotations

from typing import Any

import pytest

from disagg.plane.messages import ProcessSample
from disagg.sglang.rank_health import judge

WELL = ProcessSample(
    dp_rank=0,
    group=0,
    beat_age_s=0.1,
    batch_tokens=0,
    step_longest_s=0.4,
    step_longest_tokens=256,
    steps=100,
    state="S",
    stopped_s=0.0,
    watched_s=0.0,
    cpu_s=0.0,
)


def sick(*changes: dict[str, Any]) -> list[str]:
    return [rank.sick for rank in judge(WELL._replace(**change) for change in changes)]


@pytest.mark.parametrize("state", ["", "Z", "X"])
def test_a_process_that_is_gone(state: str) -> None:
    assert sick({"state": state}) == ["its scheduler process is gone"]


def test_a_stopped_process_and_one_that_was_stopped_for_a_moment() -> None:
    assert "stopped for 1.1 s" in sick({"state": "T", "stopped_s": 1.1})[0]
    assert sick({"state": "T", "stopped_s": 0.9}) == [""]


def test_an_idle_loop_that_sleeps_between_rounds_is_well() -> None:
    assert sick({"beat_age_s": 1.3, "watched_s": 1.0}) == [""]


def test_a_loop_that_sleeps_is_found_after_three_seconds() -> None:
    asleep = {"watched_s": 2.7, "cpu_s": 0.01}
    assert sick({"beat_age_s": 2.9, **asleep}) == [""]
    assert "computes nothing" in sick({"beat_age_s": 3.1, **asleep})[0]


@pytest.mark.parametrize("works", [{"cpu_s": 1.0}, {"state": "R"}, {"state": "D"}])
def test_a_loop_that_computes_or_waits_for_a_core_is_not_asleep(works: dict[str, Any]) -> None:
    assert sick({"beat_age_s": 4.9, "watched_s": 4.5, "cpu_s": 0.0, **works}) == [""]


def test_a_long_chunk_is_judged_by_its_tokens() -> None:
    computes = {"state": "R", "batch_tokens": 2560, "watched_s": 10.0, "cpu_s": 10.0}
    assert sick({"beat_age_s": 11.9, **computes}) == [""], "3 x 0.4 s x 2560 / 256"
    assert "12.0 s would be long" in sick({"beat_age_s": 12.1, **computes})[0]


def test_a_small_batch_after_a_long_step_has_three_times_that_step() -> None:
    slow = {"state": "R", "step_longest_s": 10.0, "step_longest_tokens": 3000, "batch_tokens": 1}
    assert sick({"beat_age_s": 29.0, **slow}) == [""]
    assert sick({"beat_age_s": 31.0, **slow}) != [""]


def test_a_first_step_has_a_minute() -> None:
    first = {"step_longest_s": 0.0, "step_longest_tokens": 0, "steps": 0, "batch_tokens": 3000, "watched_s": 50.0}
    assert sick({"beat_age_s": 59.0, **first}) == [""], "it may wait for a compiler"
    assert sick({"beat_age_s": 61.0, **first}) != [""]


def test_so_have_the_steps_after_it() -> None:
    """A decode step compiles kernels of its own, after a prefill step that was quicker."""
    compiles = {"step_longest_s": 2.7, "step_longest_tokens": 32, "batch_tokens": 1, "state": "R", "cpu_s": 8.0}
    assert sick({"beat_age_s": 8.3, "steps": 1, **compiles}) == [""]
    assert sick({"beat_age_s": 8.3, "steps": 3, **compiles}) == [""]
    assert sick({"beat_age_s": 8.3, "steps": 4, **compiles}) != [""]


def test_dp_ranks_that_attend_together_wait_for_each_other() -> None:
    """Rank 0 computes a long chunk; rank 1 waits for it in a collective, and uses no CPU."""
    computes = {"dp_rank": 0, "state": "R", "batch_tokens": 5120, "watched_s": 8.0, "cpu_s": 8.0, "beat_age_s": 8.0}
    waits = {"dp_rank": 1, "state": "S", "batch_tokens": 1, "watched_s": 8.0, "cpu_s": 0.0, "beat_age_s": 8.0}
    assert sick(computes, waits) == ["", ""]
    assert sick(computes | {"state": "S", "cpu_s": 0.0}, waits) != ["", ""], "nobody computes"


def test_dp_ranks_of_their_own_are_judged_alone() -> None:
    computes = {"dp_rank": 0, "group": 0, "state": "R", "watched_s": 4.0, "cpu_s": 4.0, "beat_age_s": 4.0}
    hangs = {"dp_rank": 1, "group": 1, "state": "S", "watched_s": 4.0, "cpu_s": 0.0, "beat_age_s": 4.0}
    healthy, hung = sick(computes, hangs)
    assert not healthy
    assert "computes nothing" in hung


def test_a_rank_is_as_sick_as_any_of_its_processes() -> None:
    ranks = judge([WELL, WELL._replace(state="T", stopped_s=2.0, beat_age_s=2.0), WELL._replace(dp_rank=1, group=1)])
    assert [(rank.dp_rank, bool(rank.sick), rank.beat_age_s) for rank in ranks] == [(0, True, 2.0), (1, False, 0.1)]


def test_a_stopped_process_explains_the_others_that_wait_for_it() -> None:
    waits = WELL._replace(beat_age_s=4.0, watched_s=4.0)
    (rank,) = judge([waits, waits._replace(state="T", stopped_s=4.0)])
    assert "stopped" in rank.sick
