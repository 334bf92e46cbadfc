"""Seconds that a rank has read: whatever the order in which its answers end, each second counts once."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from disagg.plane.ledger import SPANS_MAX, Reading, Standing

SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), min_size=1, max_size=SPANS_MAX)


@settings(max_examples=200, deadline=None)
@given(SPANS)
def test_each_second_counts_once_in_whatever_order_it_is_told(spans: list[tuple[int, int]]) -> None:
    reading, covered = Reading(), set[int]()
    for start, length in spans:
        reading.add(100, 40, float(start), float(start + length))
        covered |= set(range(start, start + length))
        assert reading.seconds == len(covered)
    assert (reading.prompts, reading.tokens) == (len(spans), 60 * len(spans))


def test_an_answer_that_ends_after_later_ones_does_not_take_its_reading_with_it() -> None:
    reading = Reading()
    reading.add(10, 0, 5.0, 6.0)
    reading.add(10, 0, 1.0, 3.0)
    assert reading.seconds == 3.0


def test_what_is_remembered_of_spans_is_bounded() -> None:
    reading = Reading()
    for number in range(SPANS_MAX * 3):
        reading.add(10, 0, 2.0 * number, 2.0 * number + 1)
    assert len(reading._starts) == len(reading._ends) == SPANS_MAX
    reading.add(10, 0, 0.0, 1.0)  # long forgotten: it is not counted twice
    assert reading.seconds == SPANS_MAX * 3


def test_answers_stand_still_while_any_prompt_is_read() -> None:
    standing = Standing()
    standing.begins(1.0)
    assert standing.seconds(1.5) == 0.5
    standing.begins(2.0)
    standing.ends(3.0)
    assert standing.seconds(4.0) == 3.0
    standing.ends(4.0)
    assert standing.seconds(9.0) == 3.0
