"""Keys are taken, and shown nowhere; the log level reaches the engines."""

from __future__ import annotations

import pytest

from disagg.config import parse_config, resolve
from disagg.errors import ConfigError

PAIR = "version: 1\ndevice: cpu\nmodel: {path: m}\nprefill: {engine: {log_level: debug}}\ndecode: {}\n"
KEY = "a-secret-key-0123456789"


def test_a_key_is_shown_nowhere() -> None:
    deployment = parse_config(PAIR + f"security: {{api_keys: [{KEY}]}}")
    assert [key.get_secret_value() for key in deployment.security.api_keys] == [KEY]
    assert KEY not in repr(deployment)
    assert KEY not in str(deployment.model_dump())


@pytest.mark.parametrize("security", ["{api_keys: [too-short-a]}", "{api_keys: too-short-a}", "{api_key: too-short-a}"])
def test_nor_is_one_in_a_refusal(security: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config(PAIR + f"security: {security}")
    assert any(problem.path.startswith("security.api_key") for problem in refused.value.problems)
    assert "too-short-a" not in "".join(map(str, refused.value.problems))


def test_a_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    deployment = parse_config(PAIR + 'security: {api_keys: ["${env:SOME_KEY}"]}')
    assert deployment.security.api_keys[0].get_secret_value() == KEY


def test_the_log_level_is_that_of_all_pools_that_say_none() -> None:
    plan = resolve(parse_config(PAIR + "telemetry: {log_level: warning}"), "cpu")
    assert [engine.engine["log_level"] for engine in plan.engines] == ["debug", "warning"]
