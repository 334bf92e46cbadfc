"""The sum of many decode steps against the steps one by one."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disagg.replay.virtual.decode_batch import DecodeBatch
from disagg.replay.virtual.served import Served
from disagg.roles import Role
from disagg.simulated_engine.model import Model

MODEL = Model(role=Role.DECODE, step_s=0.005, step_leg_s=1e-4, step_context_s=1e-6)


def served(number: int, prompt: int, output: int) -> Served:
    return Served(number, 0.0, prompt, output, output, array("Q"), "")


def batch_of(lengths: list[tuple[int, int]], gaps: list[tuple[float, int]]) -> DecodeBatch:
    batch = DecodeBatch(MODEL, lambda seconds, count: gaps.append((seconds, count)))
    for number, (prompt, output) in enumerate(lengths):
        batch.add(served(number, prompt, output))
    return batch


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(2, 60)), min_size=1, max_size=8))
def test_a_jump_takes_as_long_as_its_steps(lengths: list[tuple[int, int]]) -> None:
    gaps: list[tuple[float, int]] = []
    batch = batch_of(lengths, gaps)
    left = {number: output - 1 for number, (_, output) in enumerate(lengths)}
    context = {number: prompt + 1 for number, (prompt, _) in enumerate(lengths)}
    now_s = 0.0
    while batch.legs:
        steps = batch.steps_to_end
        jumped_s, one_by_one_s = batch.lasting_s(steps), 0.0
        for _ in range(steps):
            one_by_one_s += MODEL.decode_step_s(len(left), sum(context.values()))
            left = {number: count - 1 for number, count in left.items()}
            context = {number: tokens + 1 for number, tokens in context.items()}
        assert jumped_s == pytest.approx(one_by_one_s)
        batch.begin(now_s)
        done = {each.number for each in batch.advance(steps)}
        assert done == {number for number, count in left.items() if not count}
        left = {number: count for number, count in left.items() if count}
        context = {number: context[number] for number in left}
        now_s += jumped_s
    assert sum(count for _, count in gaps) == sum(output - 1 for _, output in lengths), "a gap for each token but one"


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 3), st.integers(1, 5000))
def test_a_step_that_runs_is_run_to_its_end(seconds: float, prompt: int) -> None:
    batch = batch_of([(prompt, 1000), (prompt, 1000)], [])
    steps = batch.steps_within(seconds)
    assert batch.lasting_s(steps) >= seconds
    assert steps == 1 or batch.lasting_s(steps - 1) < seconds


def test_a_stream_stands_still_while_prompts_are_read() -> None:
    gaps: list[tuple[float, int]] = []
    batch = batch_of([(100, 10)], gaps)
    batch.begin(0.0)
    batch.advance(3)
    gaps.clear()
    batch.begin(2.0)
    assert gaps[0][0] == pytest.approx(2.0 - 3 * 0.0052, abs=0.01)
