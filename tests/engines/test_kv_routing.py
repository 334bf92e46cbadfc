"""Real engines under policy predicted: a prompt goes where it is cached, and what routing believes the engines confirm.

In a request's timeline: `routed.cached_tokens` is believed, `cached_tokens` is SGLang's own count. (An answer's usage
says 0 where it ends before prefill has told.) LoRA adapters: test_lora.py.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import NamedTuple

import httpx
import pytest
from deployment import Deployment, light, serving
from moe import ATTENTION_APART, prompt

from disagg.models.tiny import make_tiny

pytestmark = pytest.mark.alone  # on two busy cores an engine may be slow for reasons of others

BLOCK = 64  # tokens, in which routing counts
BACK_S = 120.0  # on a busy machine, as the next two
FOUND_S = 30.0
TOLD_S = 10.0
REPEATS = 3
SETS = ("ray.address=local", "routing.policy=predicted", "health.canary_s=3600")


class Answered(NamedTuple):
    prefill: str  # life/dp rank
    believed: int  # tokens
    confirmed: int


@pytest.fixture(scope="module")
def told() -> Iterator[Deployment]:
    with serving("configs/local-cpu-2p2d.yaml", *SETS, *light()) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def guessed() -> Iterator[Deployment]:
    with serving(
        "configs/local-cpu-2p2d.yaml", *SETS, *light(), "routing.kv_events=false", "decode.replicas=1"
    ) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def ranks() -> Iterator[Deployment]:
    """Each role one engine of two dp ranks."""
    engine = [f"engine.{key}={str(value).lower()}" for key, value in ATTENTION_APART.items()]
    apart = [f"{role}.{each}" for role in ("prefill", "decode") for each in engine]
    model = (f"model.path={make_tiny('dsv3')}", "model.name=smollm2")
    with serving("configs/local-cpu.yaml", *SETS, *model, *apart) as deployment:
        yield deployment


def test_by_events_prompts_go_where_they_are_cached_until_that_engine_is_killed(told: Deployment) -> None:
    asked = prompt(16 * BLOCK + 11, 1)
    holder = _assert_it_sticks(told, asked, 16 * BLOCK)
    other = _assert_it_moves(told, holder, asked, 16 * BLOCK)
    _wait_for_new_life(told, holder)
    assert _ask(told, asked).prefill == other


def test_what_was_read_with_one_salt_counts_for_that_alone(told: Deployment) -> None:
    """For routing as for the engine."""
    asked, cached = prompt(16 * BLOCK + 11, 4), 16 * BLOCK
    salts: list[dict[str, str]] = [{}, {"cache_salt": "a"}, {"cache_salt": "b"}, {"cache_salt": "a", "extra_key": "c"}]
    for salt in salts:
        first = _ask(told, asked, **salt)
        assert first[1:] == (0, 0), salt
        wanted = Answered(first.prefill, cached, cached)
        told.wait_until(lambda salt=salt, wanted=wanted: _ask(told, asked, **salt) == wanted, TOLD_S)


def test_by_prediction_they_go_there_too(guessed: Deployment) -> None:
    asked = prompt(16 * BLOCK + 11, 2)
    holder = _assert_it_sticks(guessed, asked, 16 * BLOCK)
    _assert_it_moves(guessed, holder, asked, 16 * BLOCK)


def test_of_dp_ranks_the_one_that_holds_it_is_chosen_and_a_new_life_holds_nothing(ranks: Deployment) -> None:
    asked = prompt(32 * BLOCK + 11, 3)
    holder = _assert_it_sticks(ranks, asked, 32 * BLOCK)
    _kill(ranks, holder)
    _wait_for_new_life(ranks, holder)
    assert _assert_it_sticks(ranks, asked, 32 * BLOCK) != holder


def _assert_it_sticks(deployment: Deployment, asked: list[int], cached: int) -> str:
    """A prompt that nobody has seen: who reads it first reads it each time, and needs its end alone."""
    first = _ask(deployment, asked)
    assert first[1:] == (0, 0)
    _wait_for_blocks(deployment, first.prefill, cached // BLOCK)
    for _ in range(REPEATS):
        assert _ask(deployment, asked) == Answered(first.prefill, cached, cached)
    half = cached // 2
    parted = _ask(deployment, [*asked[:half], *prompt(BLOCK, 9)])
    assert (parted.prefill, parted.confirmed) == (first.prefill, half)
    assert parted.believed in (half, half + BLOCK - 1)  # a block too many by chance, once in 16 times: prefix_index
    return first.prefill


def _assert_it_moves(deployment: Deployment, holder: str, asked: list[int], cached: int) -> str:
    """Its holder is killed: another one reads it anew, and has it from then on."""
    _kill(deployment, holder)
    first = _ask(deployment, asked)
    assert first.prefill != holder
    assert first[1:] == (0, 0)
    _wait_for_blocks(deployment, first.prefill, cached // BLOCK)
    assert _ask(deployment, asked) == Answered(first.prefill, cached, cached)
    return first.prefill


def _ask(deployment: Deployment, asked: list[int], **said: str) -> Answered:
    answer = deployment.complete(asked, max_tokens=2, ignore_eos=True, **said)
    timeline = deployment.timeline(answer["request_id"], "cached_tokens")
    assert timeline["routed"]["type"] == "LeastCost"
    assert timeline["tries"] == 1, timeline
    return Answered(timeline["prefill"], timeline["routed"]["cached_tokens"], timeline["cached_tokens"])


def _kill(deployment: Deployment, rank: str) -> None:
    [pid, *_] = deployment.engine(_engine_of(rank))["pids"]["schedulers"]
    os.kill(pid, signal.SIGKILL)
    deployment.wait_until(lambda: deployment.engine(_engine_of(rank))["state"] != "ready", FOUND_S)


def _wait_for_new_life(deployment: Deployment, rank: str) -> None:
    """It is ready, and the index has nothing of it."""
    engine = _engine_of(rank)
    deployment.wait_until(lambda: f"{engine}#{deployment.engine(engine)['incarnation']}" != rank[:-2], BACK_S)
    deployment.wait_until(deployment.all_ready, BACK_S)
    _wait_for_blocks(deployment, rank, 0)


def _wait_for_blocks(deployment: Deployment, rank: str, blocks: int) -> None:
    """Until the index has so many of the rank."""
    shown = f'disagg_cached_blocks{{dp_rank="{rank[-1]}",engine="{_engine_of(rank)}"}} {blocks}.0'
    deployment.wait_until(lambda: shown in httpx.get(f"{deployment.url}/metrics", trust_env=False).text, TOLD_S)


def _engine_of(rank: str) -> str:
    return rank.partition("#")[0]
