"""Another role is one more object: shown with an engine that reads prompts and makes no tokens, made up here.

In the product it would also be a word of disagg/roles.py, a line of disagg/role_table.py, and a key of the YAML.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, ClassVar, cast

import pytest

from disagg.config.rules import check_rules, pool_texts
from disagg.config.schema import Deployment, Pools
from disagg.planning.assess import assess
from disagg.planning.plan import Plan, complete_arguments, resolve, shown_environment
from disagg.planning.report import render
from disagg.preflight.api import check
from disagg.role_table import ROLES
from disagg.roles import Role
from disagg.worker_role import WorkerRole

MODEL = {"version": 1, "device": "cpu", "model": {"path": "/nowhere/model"}}


class Word(StrEnum):
    COUNTING = "counting"


NAME = cast("Role", Word.COUNTING)


class CountingRole(WorkerRole):
    name: ClassVar[Role] = NAME
    makes_tokens: ClassVar = False

    def arguments(self, pool_engine: Mapping[str, Any], *, device: str, bootstrap_port: int) -> dict[str, Any]:
        return {**pool_engine, "enable_metrics": True}

    def environment(self, *, first_token_s: float, pace_ms: float | None) -> dict[str, str]:
        return {"COUNTS_WITHIN_S": f"{first_token_s:g}"}

    def new_tokens(self, asked: int) -> int:
        return 0


class WithCounting(Deployment):
    counting: Pools = ()


@pytest.fixture(autouse=True)
def it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROLES, NAME, CountingRole())


def plan(**pools: Any) -> Plan:
    tree = MODEL | pools
    assert not check_rules(tree, pool_texts(tree))
    return resolve(WithCounting.model_validate(tree), "cpu")


def test_it_is_planned_with_arguments_and_environment_of_its_own() -> None:
    planned = plan(counting=[{"replicas": 2}, {"name": "wide", "engine": {"tp_size": 2}}])
    assert [engine.id for engine in planned.engines] == ["counting-0", "counting-1", "counting-2"]
    arguments = complete_arguments(planned, planned.engines[2])
    assert arguments["enable_metrics"]
    assert arguments["tp_size"] == 2
    assert not any(name.startswith("disaggregation") for name in arguments)
    environment = shown_environment(planned, planned.engines[0])
    assert environment["COUNTS_WITHIN_S"] == "120"
    assert not any("DISAGGREGATION" in name for name in environment)


def test_it_is_checked_and_told_of_before_it_starts() -> None:
    planned = plan(counting={})
    assert not check(planned)
    seen = assess(planned)
    assert not seen.lanes
    assert "counting-0  (counting, pool counting.0: 1 CPU)" in render(seen)


@pytest.mark.parametrize(
    ("pools", "path", "what"),
    [
        ({"counting": {"pace_ms": 25}}, "counting.pace_ms", "is of decode engines"),
        ({}, "configuration", "has no engines"),
    ],
)
def test_rules_between_roles_know_it(pools: dict[str, Any], path: str, what: str) -> None:
    tree = MODEL | pools
    found = check_rules(tree, pool_texts(tree))
    assert [problem.path for problem in found] == [path]
    assert what in found[0].what
    if not pools:
        assert found[0].would_do == "add prefill and decode, or aggregated, or embedding, or counting"
