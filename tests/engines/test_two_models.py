"""Two models on real engines behind one endpoint: a pair for one, an engine that does both for the other."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from deployment import Deployment, serving

from disagg.models.tiny import make_tiny

NEW_TOKENS = 8
BACK_S = 120.0  # on a busy machine
PROMPT = [7 + (7919 * at) % 300 for at in range(40)]


@pytest.fixture(scope="module")
def two() -> Iterator[Deployment]:
    """The shipped configuration, with two models of random weights that differ in their architecture."""
    paths = (f"models.chat.path={make_tiny('qwen3')}", f"models.tiny.path={make_tiny('dsv3')}")
    with serving("two-models-cpu", *paths, "ray.address=local") as deployment:
        yield deployment


def tokens(deployment: Deployment, model: str) -> tuple[list[int], dict[str, Any]]:
    body = {"model": model, "prompt": PROMPT, "max_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True}
    url = f"{deployment.url}/v1/completions"
    answer = httpx.post(url, json={**body, "return_token_ids": True}, timeout=120, trust_env=False)
    assert answer.status_code == 200, answer.text
    ids: list[int] = answer.json()["choices"][0]["token_ids"]
    return ids, deployment.timeline(answer.headers["x-request-id"], until="decode")


def test_each_answers_with_its_own_engines_while_the_other_dies_and_comes_back(two: Deployment) -> None:
    assert [model["id"] for model in two.get("/v1/models")["data"]] == ["chat", "tiny"]
    of_chat, way = tokens(two, "chat")
    assert (way["prefill"], way["decode"]) == ("chat.prefill-0#1/0", "chat.decode-0#1/0")
    assert two.timeline(way["id"])["kv_bytes"] > 0, "SGLang's own transfer counter did not grow"
    of_tiny, way = tokens(two, "tiny")
    assert way["decode"] == "tiny.aggregated-0#1/0"
    assert of_chat != of_tiny, "two models that say the same would show nothing"
    assert len(of_chat) == len(of_tiny) == NEW_TOKENS
    peers = {engine["id"]: engine["peers"] for engine in two.get("/disagg/status")["engines"]}
    assert peers.pop("tiny.aggregated-0") == []
    assert peers == {"chat.prefill-0": ["chat.decode-0#1"], "chat.decode-0": ["chat.prefill-0#1"]}

    os.kill(two.engine("tiny.aggregated-0")["pids"]["host"], signal.SIGKILL)
    two.wait_until(lambda: two.engine("tiny.aggregated-0")["state"] != "ready", BACK_S)
    assert tokens(two, "chat")[0] == of_chat
    two.wait_until(two.all_ready, BACK_S)
    assert tokens(two, "tiny")[0] == of_tiny
