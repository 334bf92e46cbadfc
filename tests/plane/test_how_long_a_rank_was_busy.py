"""What a host counts of the time in which a rank reads prompts."""

from __future__ import annotations

import random

import pytest

from disagg.plane.ledger import SPANS_MAX, Reading
from disagg.plane.messages import RankTaken
from disagg.roles import Role
from disagg.routing.endpoints import Endpoint, Engine
from disagg.routing.load import Endpoints
from disagg.routing.observations import Observation, Read

PROMPTS = ((0.0, 5.0), (5.0, 5.1), (5.05, 5.2), (7.0, 8.0), (7.5, 7.6), (9.0, 9.5))
BUSY_S = 5.2 + 1.0 + 0.5


@pytest.mark.parametrize("seed", range(10))
def test_it_is_the_same_in_whatever_order_legs_end(seed: int) -> None:
    """A long prompt's KV takes longer to move than that of the short one after it; answers end in any order."""
    reading, order = Reading(), random.Random(seed).sample(PROMPTS, len(PROMPTS))
    for start_s, end_s in order:
        reading.add(1000, 0, start_s, end_s)
    assert reading.seconds == pytest.approx(BUSY_S)


def test_what_is_kept_of_it_is_bounded() -> None:
    reading = Reading()
    for second in range(3 * SPANS_MAX):
        reading.add(10, 0, float(second), second + 0.5)
    assert reading.seconds == pytest.approx(1.5 * SPANS_MAX)
    assert len(reading._spans) == SPANS_MAX


def test_prompts_of_one_batch_are_learnt_from_together_though_two_reports_tell_of_them() -> None:
    """The second report has more tokens, and no more time."""
    seen: list[Observation] = []
    endpoints = Endpoints()
    endpoints.on_observation = seen.append
    engine = Engine("prefill-0", "prefill-0#1", Role.PREFILL, 0)
    endpoint = Endpoint(engine, 0, "", None, None)  # type: ignore[arg-type]
    reports = ((0, 0, 0.0), (1, 100, 0.1), (2, 200, 0.1), (3, 300, 0.2))
    for at_s, (prompts, tokens, seconds) in enumerate(reports):
        told = RankTaken(0, 0, read_prompts=prompts, read_tokens=tokens, read_area=float(tokens), read_s=seconds)
        endpoints.report(endpoint, told, at_s + 1.0)
    assert [(each.tokens, each.seconds, each.over_s) for each in seen if isinstance(each, Read)] == [
        (100, 0.1, 1.0),
        (200, pytest.approx(0.1), 2.0),
    ]
