"""What is learnt of engines stays right however long they serve, and whatever they serve meanwhile."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from disagg.routing.cost.costs import Costs
from disagg.routing.cost.fit import Fit
from disagg.routing.cost.prior import Prior
from disagg.routing.endpoints import RankId
from disagg.routing.observations import Read

TRUE = (0.01, 5e-5, 1e-10)  # each prompt, token, token²


def law() -> Fit:
    return Fit((0.001, 5e-6, 1e-11), (1.0, 2000.0, 4e6))


def prompt(tokens: float) -> tuple[float, float, float]:
    return 1.0, tokens, tokens**2 / 2


def seconds(tokens: float) -> float:
    return sum(weight * each for weight, each in zip(TRUE, prompt(tokens), strict=True))


def learn(fit: Fit, tokens: Callable[[random.Random], float], count: int) -> None:
    noise = random.Random(1)
    for _ in range(count):
        length = tokens(noise)
        fit.learn(prompt(length), seconds(length) * noise.uniform(0.97, 1.03))


def of_all_lengths(noise: random.Random) -> float:
    return noise.uniform(100, 20_000)


def test_a_law_is_as_good_after_twelve_thousand_measurements_as_after_a_thousand() -> None:
    fit = law()
    for _ in range(12):
        learn(fit, of_all_lengths, 1000)
        for tokens in (100, 1000, 10_000):
            assert fit(prompt(tokens)) == pytest.approx(seconds(tokens), rel=0.15)


@pytest.mark.parametrize("lengths", [(1000,), (1000, 2000)])
def test_prompts_of_few_lengths_do_not_make_it_forget_what_others_cost(lengths: tuple[int, ...]) -> None:
    fit = law()
    learn(fit, lambda noise: noise.choice(lengths), 8000)
    assert fit(prompt(100_000)) == pytest.approx(seconds(100_000), rel=0.3)
    learn(fit, of_all_lengths, 1000)
    assert fit(prompt(10_000)) == pytest.approx(seconds(10_000), rel=0.1)


def test_one_measurement_that_is_far_off_weighs_no_more_than_the_others() -> None:
    """A stopped machine; two prompts of one batch, of which the second one took no time of its own."""
    for factor in (1000.0, 0.001):
        fit = law()
        learn(fit, of_all_lengths, 500)
        fit.learn(prompt(8000), seconds(8000) * factor)
        learn(fit, of_all_lengths, 100)
        assert fit(prompt(8000)) == pytest.approx(seconds(8000), rel=0.1)


def test_nor_does_it_change_what_a_waiting_token_is_believed_to_take() -> None:
    costs, rank = Costs(Prior()), RankId("prefill-0", "prefill-0#1", 0)
    for _ in range(500):
        costs.observe(Read(rank, 1, 1000, 5e5, 0.05, 0.1))
    usual_s = costs.drain_token_s
    assert usual_s == pytest.approx(5e-5, rel=0.1)
    for tokens in (100, 2000):
        costs.observe(Read(rank, 1, tokens, tokens**2 / 2, 60.0, 60.0))
    assert usual_s < costs.drain_token_s < 1.5 * usual_s
    for _ in range(2000):
        costs.observe(Read(rank, 1, 1000, 5e5, 5.0, 10.0))  # all has become slow: that is learnt
    assert costs.drain_token_s == pytest.approx(5e-3, rel=0.1)


@pytest.mark.parametrize("slow", [3.0, 8.0, 20.0])
def test_a_rank_is_believed_to_be_as_slow_as_it_is_and_one_that_stood_still_once_is_not(slow: float) -> None:
    costs, noise = Costs(Prior(), lambda: 0.0), random.Random(1)
    ranks = [RankId(f"prefill-{number}", f"prefill-{number}#1", 0) for number in range(4)]
    for number in range(2000):
        rank, tokens = ranks[number % 4], round(of_all_lengths(noise))
        took_s = seconds(tokens) * (slow if rank is ranks[3] else 1.0)
        costs.observe(Read(rank, 1, tokens, tokens**2 / 2, took_s, 2 * took_s))
    costs.observe(Read(ranks[1], 1, 5000, 1.25e7, 600.0, 600.0))
    assert costs.read_s(ranks[3], 5000, 0) == pytest.approx(slow * seconds(5000), rel=0.1)
    assert costs.read_s(ranks[0], 5000, 0) == pytest.approx(seconds(5000), rel=0.1)
    assert costs.read_s(ranks[1], 5000, 0) == pytest.approx(seconds(5000), rel=0.3)
