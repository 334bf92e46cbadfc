"""Mistakes that real deployments made: each is refused before anything starts, and only its own rule tells it."""

import pytest

from disagg.errors import ConfigError, Problem
from disagg.preflight.all_rules import RULES
from disagg.preflight.api import check
from tests.preflight.mistakes import BASES, Mistake, model_of, planted, shape

PLANTED = planted()
BY_NAME = pytest.mark.parametrize("mistake", PLANTED, ids=lambda mistake: mistake.name)


def refused(mistake: Mistake, monkeypatch: pytest.MonkeyPatch, without: str = "") -> list[Problem]:
    """As `disagg check` and `disagg serve` do it: the file's text, then the plan on its nodes."""
    rules = tuple(rule for rule in RULES if rule.name != without)
    monkeypatch.setattr("disagg.preflight.api.RULES", rules)
    try:
        plan = mistake.plan()
    except ConfigError as error:
        return list(error.problems)
    return check(plan, mistake.cluster(), mistake.model(), mistake.measured())


@BY_NAME
def test_it_is_refused_with_its_path_cause_and_remedy(mistake: Mistake, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = refused(mistake, monkeypatch)
    told = [problem for problem in problems if problem.path == mistake.path]
    assert told, problems
    assert any(mistake.cause in problem.why for problem in told), told
    assert any(mistake.remedy in problem.would_do for problem in told), told
    assert any(mistake.thread in problem.why for problem in told), told
    assert all(problem.what and problem.would_do for problem in problems)


@BY_NAME
def test_without_its_rule_it_would_be_let_through(mistake: Mistake, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(mistake, monkeypatch, without=mistake.rule) == []


@pytest.mark.parametrize("base", BASES)
def test_what_they_are_planted_in_is_let_through(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(Mistake("", "", base, "", "", ""), monkeypatch) == []
    assert model_of(base).heads
    assert shape().nodes


def test_every_rule_has_a_mistake_and_forty_there_are() -> None:
    assert {mistake.rule for mistake in PLANTED} == {rule.name for rule in RULES}
    assert len({mistake.name for mistake in PLANTED}) == len(PLANTED) >= 40
