"""An aggregated engine beside a pair: each request goes where it costs least, and either side alone serves on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from deployment import Deployment, light, serving

BACK_S = 120.0  # on a busy machine
SHORT = "The capital of France is"


@pytest.fixture(scope="module")
def mixed() -> Iterator[Deployment]:
    with serving("configs/local-cpu-conditional.yaml", "ray.address=local", *light()) as deployment:
        deployment.wait_until(deployment.all_ready, BACK_S)
        yield deployment


def _long(number: int) -> list[int]:
    return [1000 + number, *range(2000, 2400)]


def _routed(deployment: Deployment, prompt: Any, **more: Any) -> tuple[list[int], dict[str, Any]]:
    body = {"model": "smollm2", "prompt": prompt, "temperature": 0, "max_tokens": 8, "return_token_ids": True, **more}
    answer = httpx.post(f"{deployment.url}/v1/completions", json=body, timeout=120, trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["token_ids"], deployment.timeline(answer.headers["x-request-id"], "decode")


def _kill(deployment: Deployment, engine_id: str) -> None:
    for pid in deployment.engine(engine_id)["pids"]["schedulers"]:
        os.kill(pid, signal.SIGKILL)


def test_both_kinds_give_the_same_tokens_and_the_timeline_says_why_it_was_one(mixed: Deployment) -> None:
    """Whatever kinds were chosen: the same greedy tokens, cached or not."""
    tokens: dict[str, list[list[int]]] = {"short": [], "long": []}
    for _ in range(4):
        for name, prompt in (("short", SHORT), ("long", _long(1))):
            ids, timeline = _routed(mixed, prompt)
            tokens[name].append(ids)
            assert timeline["routed"]["type"] in ("LeastCost", "PickedBySide"), timeline["routed"]
            assert timeline["routed"]["cost_ms"] > 0
    for name, answers in tokens.items():
        assert all(ids == answers[0] for ids in answers), name


@pytest.mark.in_turn(1)
@pytest.mark.parametrize("gone", ["prefill-0", "decode-0"])
def test_a_role_that_is_gone_leaves_the_aggregated_engine_and_comes_back(mixed: Deployment, gone: str) -> None:
    want, _ = _routed(mixed, _long(2))
    before = mixed.engine(gone)["incarnation"]
    _kill(mixed, gone)
    mixed.wait_until(lambda: mixed.engine(gone)["state"] != "ready", 30)
    ids, timeline = _routed(mixed, _long(2))
    assert ids == want
    assert timeline["prefill"] is None
    assert timeline["decode"].startswith("aggregated-0")
    mixed.wait_until(lambda: mixed.engine(gone)["incarnation"] > before and mixed.all_ready(), BACK_S)
    assert _routed(mixed, _long(3))[0]


def test_without_the_aggregated_engine_the_pair_serves_all(mixed: Deployment) -> None:
    want, _ = _routed(mixed, SHORT)
    _kill(mixed, "aggregated-0")
    mixed.wait_until(lambda: mixed.engine("aggregated-0")["state"] != "ready", 30)
    ids, timeline = _routed(mixed, SHORT)
    assert ids == want
    assert timeline["prefill"].startswith("prefill-0")
    mixed.wait_until(mixed.all_ready, BACK_S)
