"""Two models on real engines behind one endpoint: a pair for one, an engine that does both for the other; a third one
comes and goes under streams."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from deployment import Deployment, serving
from streams import Stream, all_the_time

from disagg.models.tiny import make_tiny

NEW_TOKENS = 8
BACK_S = 120.0  # on a busy machine
CHANGE_S = 400.0  # several starts of real engines on two busy cores
SETS = (f"models.chat.path={make_tiny('qwen3')}", f"models.tiny.path={make_tiny('dsv3')}", "ray.address=local")
THIRD = (f"models.third.path={make_tiny('qwen3')}", "models.third.aggregated.resources.cpus=0.5")
NO_MODEL = 'models.third.aggregated.engine.json_model_override_args=\'{"architectures": ["NoSuchModelForCausalLM"]}\''
PROMPT = [7 + (7919 * at) % 300 for at in range(40)]


@pytest.fixture(scope="module")
def two() -> Iterator[Deployment]:
    """The shipped configuration, with two models of random weights that differ in their architecture."""
    with serving("two-models-cpu", *SETS) as deployment:
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


def apply(deployment: Deployment, *sets: str) -> subprocess.CompletedProcess[str]:
    port = deployment.url.rpartition(":")[2]
    said = [word for each in (*SETS, f"frontend.port={port}", *sets) for word in ("--set", each)]
    command = [sys.executable, "-m", "disagg.cli.main", "apply", "two-models-cpu", *said, "--yes", "--wait"]
    environment = os.environ | {"DISAGG_URL": deployment.url}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=CHANGE_S, check=False)


@pytest.mark.timeout(1800)
def test_a_third_comes_and_goes_and_one_that_does_not_start_is_taken_back_under_streams(two: Deployment) -> None:
    def names() -> list[str]:
        return [model["id"] for model in two.get("/v1/models")["data"]]

    with all_the_time(lambda _: [Stream(two, PROMPT, 4 * NEW_TOKENS, model="chat")]) as streams:
        bad = apply(two, *THIRD, NO_MODEL)
        assert bad.returncode == 1, bad.stdout
        assert "rolled back" in bad.stderr
        assert "NoSuchModelForCausalLM" in bad.stderr
        assert names() == ["chat", "tiny"]

        came = apply(two, *THIRD)
        assert came.returncode == 0, f"{came.stdout}{came.stderr}\n{two.said()}"
        two.wait_until(lambda: names() == ["chat", "tiny", "third"], BACK_S)
        ids, way = tokens(two, "third")
        assert len(ids) == NEW_TOKENS
        assert way["decode"].startswith("third.aggregated-0#")

        gone = apply(two)
        assert gone.returncode == 0, f"{gone.stdout}{gone.stderr}"
        two.wait_until(lambda: names() == ["chat", "tiny"], BACK_S)
        refused = httpx.post(f"{two.url}/v1/completions", json={"model": "third", "prompt": "x"}, trust_env=False)
        assert refused.status_code == 404
    failed = [(each.status, each.error, each.failure) for each in streams if each.error or each.failure]
    assert not failed, failed
    assert len(streams) > 5
    assert {len(each.token_ids) for each in streams} == {4 * NEW_TOKENS}
    assert [e["id"] for e in two.get("/disagg/status")["engines"] if e["state"] != "ready"] == []
