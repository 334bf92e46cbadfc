"""MoE on two ranks an engine, experts apart or attention apart: prefill + transfer + decode gives one engine's tokens.

With DP attention every (prefill rank, decode rank) pair serves, and the engines themselves say who holds what.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from deployment import Deployment, serving
from moe import (
    ATTENTION_APART,
    EXPERTS_APART,
    FOUR_PAIRS,
    KINDS,
    NEW_TOKENS,
    Asked,
    Way,
    aggregated_answers,
    answer,
    prompt,
    way_of,
)
from streams import wait_until

from disagg.models.tiny import make_tiny
from disagg.sglang.plugins.faults import HELD, SLOW_VARIABLE

NAME = "tiny"
WHOLE_S = 120.0
SHOWN_S = 20.0  # until the engines' snapshots show what they hold

# One token, whole and broken pages, two chunks of prefill.
SIZED: list[Asked] = [(prompt(tokens, 100 + tokens), NEW_TOKENS) for tokens in (1, 16, 33, 300)]


@pytest.fixture(scope="module")
def aggregated() -> dict[str, list[list[int]]]:
    """Of SIZED and FOUR_PAIRS, in this order, by model."""
    return aggregated_answers([str(make_tiny(kind)) for kind in KINDS], SIZED + FOUR_PAIRS)


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> str:
    return str(make_tiny(request.param))


@pytest.fixture
def experts_apart(model: str) -> Iterator[Deployment]:
    with serving("configs/local-cpu.yaml", *_sets(model, EXPERTS_APART)) as deployment:
        yield deployment


@pytest.fixture
def slow_file(tmp_path: Path) -> Path:
    return tmp_path / "seconds"


@pytest.fixture
def attention_apart(model: str, slow_file: Path) -> Iterator[Deployment]:
    faults = {SLOW_VARIABLE: str(slow_file)}
    with serving("configs/local-cpu.yaml", *_sets(model, ATTENTION_APART), environment=faults) as deployment:
        yield deployment


@pytest.mark.in_turn(1)
def test_experts_on_two_ranks_give_the_aggregated_engines_tokens(
    experts_apart: Deployment, model: str, aggregated: dict[str, list[list[int]]]
) -> None:
    assert _answers(experts_apart, SIZED) == aggregated[model][: len(SIZED)]


@pytest.mark.in_turn(1)
def test_all_four_pairs_of_ranks_serve_and_the_engines_own_loads_show_each_request_there(
    attention_apart: Deployment, slow_file: Path, model: str, aggregated: dict[str, list[list[int]]]
) -> None:
    with ThreadPoolExecutor(len(FOUR_PAIRS)) as pool:
        answers: list[Future[list[int]]] = []
        ways: list[Way] = []
        slow_file.write_text(HELD)
        try:
            for asked in FOUR_PAIRS:
                answers.append(pool.submit(answer, attention_apart, NAME, asked))
                ways.append(way_of(attention_apart, len(asked[0])))
            assert {(way.prefill[1], way.decode[1]) for way in ways} == {(0, 0), (0, 1), (1, 0), (1, 1)}
            held: Counter[tuple[str, int]] = Counter()
            for (prompt_ids, _), way in zip(FOUR_PAIRS, ways, strict=True):
                held.update({place: len(prompt_ids) for place in way})
            wait_until(lambda: _held(attention_apart) == held, SHOWN_S, lambda: f"{_held(attention_apart)}, not {held}")
            _assert_told_by_rank(attention_apart, ways)
        finally:
            slow_file.unlink()
        assert [each.result(WHOLE_S) for each in answers] == aggregated[model][len(SIZED) :]
    assert _answers(attention_apart, SIZED) == aggregated[model][: len(SIZED)]
    wait_until(lambda: not +_held(attention_apart), 5, lambda: _held(attention_apart))


def _sets(model: str, engine: dict[str, Any]) -> list[str]:
    """Every decode step tells its load. No canary may take a place while requests are counted. By load alone four
    requests that hold their places go to four pairs."""
    on_both = engine | {"load_snapshot_publish_interval": 1}
    return [
        "ray.address=local",
        f"model.path={model}",
        f"model.name={NAME}",
        "health.canary_s=3600",
        "routing.policy=least_loaded",
        "deadlines.transfer_s=120",
        *(
            f"{role}.engine.{key}={str(value).lower()}"
            for role in ("prefill", "decode")
            for key, value in on_both.items()
        ),
    ]


def _answers(deployment: Deployment, asked: list[Asked]) -> list[list[int]]:
    with ThreadPoolExecutor(len(asked)) as pool:
        return list(pool.map(lambda each: answer(deployment, NAME, each), asked))


def _assert_told_by_rank(deployment: Deployment, ways: list[Way]) -> None:
    """Status and metrics speak of the same ranks, two requests on each."""
    metrics = httpx.get(f"{deployment.url}/metrics", trust_env=False).text
    for life, rank in {place for way in ways for place in way}:
        engine = deployment.engine(life.partition("#")[0])
        assert engine["in_flight_by_rank"][rank] == 2
        assert f'disagg_granted_requests{{dp_rank="{rank}",engine="{engine["id"]}"}} 2.0' in metrics


def _held(deployment: Deployment) -> Counter[tuple[str, int]]:
    """KV tokens used, by (life, dp rank), as the engines' own snapshots have it."""
    return Counter(
        {
            (life, rank["dp_rank"]): rank["kv_tokens_used"]
            for life, ranks in deployment.get("/disagg/loads").items()
            for rank in ranks
        }
    )
