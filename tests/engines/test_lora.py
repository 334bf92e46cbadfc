"""LoRA on real engines: they say with each adapter what a model with its weights merged in says.

One deployment of prefill and decode, and one of an engine that does both beside one that embeds, whose text engines
read. Two adapters in the YAML, a third one at run time; the same prompts with each, so that a prefix of one that
counted for another would show.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from deployment import Deployment, serving
from lora_made import ATTENTION, MLP, Answers, Meant, make

from disagg.models.random_adapter import make_adapter
from disagg.models.tiny import make_tiny

NEW_TOKENS = 12
PROMPTS = [[100 + tokens, *(1000 + (7919 * at) % 40_000 for at in range(tokens - 1))] for tokens in (5, 40, 300)]
BACK_S = 120.0  # on a busy machine
TOLD_S = 10.0
MODEL, GIVEN, LATER = "tiny", ("fr-all", "sql"), "later"
HELD = {"max_total_tokens": 8192}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def meant(folder: Path) -> Meant:
    adapters = {
        "sql": (8, ("q_proj", "v_proj")),
        "fr-all": (4, ATTENTION + MLP),
        LATER: (8, ("q_proj", "v_proj", "down_proj")),
    }
    return make(make_tiny("qwen3"), folder, adapters, PROMPTS, NEW_TOKENS)


@pytest.fixture(scope="module")
def pair(folder: Path, meant: Meant) -> Iterator[Deployment]:
    """The shipped configuration, with another model: docs/lora.md has the line."""
    adapters = [f"model.lora.adapters.{name}={folder / name}" for name in GIVEN]
    model = [f"model.path={make_tiny('qwen3')}", f"model.name={MODEL}"]
    with serving("lora-cpu", *model, *adapters, "ray.address=local", "routing.policy=predicted") as deployment:
        yield deployment


@pytest.fixture(scope="module")
def alone(folder: Path, meant: Meant) -> Iterator[Deployment]:
    lora = {"max_loras_per_batch": 4, "adapters": {"sql": "sql", "fr-all": {"path": "fr-all"}}}
    said = {
        "version": 1,
        "device": "cpu",
        "model": {"path": str(make_tiny("qwen3")), "name": MODEL, "lora": lora, "tokenization": "engine"},
        "ray": {"address": "local", "cpus": 2},
        "aggregated": {"engine": {"page_size": 16, **HELD}},
        "embedding": {"engine": HELD},
    }
    (folder / "alone.yaml").write_text(yaml.safe_dump(said))
    with serving(str(folder / "alone.yaml")) as deployment:
        yield deployment


def answers(deployment: Deployment, models: list[str]) -> Answers:
    """Of each prompt with each model's name, all at once."""
    asked = [(model, prompt) for prompt in PROMPTS for model in models]

    def answer(one: tuple[str, list[int]]) -> list[int]:
        model, prompt = one
        fields = {"max_tokens": NEW_TOKENS, "ignore_eos": True, "return_token_ids": True}
        body = deployment.complete(prompt, model=model, **fields)
        assert body["model"] == model
        ids: list[int] = body["choices"][0]["token_ids"]
        return ids

    with ThreadPoolExecutor(len(asked)) as pool:
        came = list(zip(asked, pool.map(answer, asked), strict=True))
    return {model: [ids for (name, _), ids in came if name == model] for model in models}


def post(deployment: Deployment, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{deployment.url}{path}", json=body, timeout=120, trust_env=False)


def listed(deployment: Deployment) -> list[str]:
    return [model["id"] for model in deployment.get("/v1/models")["data"]]


def vectors(deployment: Deployment, model: str) -> list[list[float]]:
    answer = post(deployment, "/v1/embeddings", model=model, input=PROMPTS)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == model
    return [entry["embedding"] for entry in answer.json()["data"]]


def test_each_adapter_says_in_one_batch_what_its_merged_weights_say(pair: Deployment, meant: Meant) -> None:
    assert_each_says_what_is_meant(pair, meant.answers)


def test_each_says_the_same_on_one_engine_that_reads_the_text_itself(alone: Deployment, meant: Meant) -> None:
    assert_each_says_what_is_meant(alone, meant.answers)


def assert_each_says_what_is_meant(deployment: Deployment, meant: Answers) -> None:
    assert listed(deployment) == [MODEL, *GIVEN]
    came = answers(deployment, [MODEL, "sql", f"{MODEL}:fr-all", "fr-all"])
    fr = meant["fr-all"]
    assert came == {MODEL: meant[""], "sql": meant["sql"], f"{MODEL}:fr-all": fr, "fr-all": fr}
    assert meant[""] != meant["sql"] != fr != meant[""]


def test_an_engine_that_embeds_makes_the_vectors_of_merged_weights(
    alone: Deployment, meant: Meant, folder: Path
) -> None:
    loaded = post(alone, "/load_lora_adapter", lora_name=LATER, lora_path=str(folder / LATER))
    assert loaded.json()["success"], loaded.text
    named = {MODEL: "", "sql": "sql", f"{MODEL}:fr-all": "fr-all", LATER: LATER}
    with ThreadPoolExecutor(len(named)) as pool:
        came = dict(zip(named, pool.map(lambda name: vectors(alone, name), named), strict=True))
    for name, adapter in named.items():
        assert alike(came[name], meant.vectors[adapter]) > 0.9999
    for name in ("sql", f"{MODEL}:fr-all", LATER):
        assert alike(came[name], meant.vectors[""]) < 0.99


def alike(some: list[list[float]], others: list[list[float]]) -> float:
    """The least cosine of two unit vectors in the same place."""
    return min(sum(a * b for a, b in zip(*both, strict=True)) for both in zip(some, others, strict=True))


def test_a_score_is_the_chance_that_the_adapters_next_token_has(alone: Deployment, meant: Meant) -> None:
    likeliest = {name: meant.answers[name][1][0] for name in ("", "sql")}
    labels = sorted(set(likeliest.values()))
    for model, adapter in ((MODEL, ""), ("sql", "sql")):
        asked = {"query": PROMPTS[1][:-1], "items": [PROMPTS[1][-1:]], "label_token_ids": labels}
        answer = post(alone, "/v1/score", model=model, **asked)
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == model
        [chances] = answer.json()["scores"]
        assert labels[chances.index(max(chances))] == likeliest[adapter]


def test_what_is_cached_with_one_adapter_is_credited_to_no_other(pair: Deployment) -> None:
    """Routing believes what the engine then finds: nothing at first, whoever else has the prompt; then all of it."""
    asked = [7, *range(2000, 2300)]
    for model in (MODEL, *GIVEN):
        assert cached_tokens(pair, model, asked) == (0, 0)
        pair.wait_until(lambda: cached_tokens(pair, model, asked) == (256, 288), TOLD_S)  # noqa: B023
    assert cached_tokens(pair, f"{MODEL}:fr-all", asked) == (256, 288)


def cached_tokens(deployment: Deployment, model: str, prompt: list[int]) -> tuple[int, int]:
    """Of the prompt: (whole KV blocks of 64 that routing believes to be cached, whole pages of 16 that were)."""
    answer = deployment.complete(prompt, model=model, max_tokens=2, ignore_eos=True)
    timeline = deployment.timeline(answer["request_id"], "cached_tokens")
    return timeline["routed"]["cached_tokens"], timeline["cached_tokens"]


def test_one_comes_at_run_time_outlives_an_engine_and_goes(pair: Deployment, meant: Meant, folder: Path) -> None:
    refused = post(pair, "/load_lora_adapter", lora_name="broken", lora_path=str(folder / "nowhere"))
    assert refused.status_code == 409
    assert all(engine in refused.json()["error_message"] for engine in ("prefill-0", "decode-0"))
    assert "broken" not in listed(pair)
    make_adapter("smollm2", folder / "of-another", 8, ("q_proj",), 0)
    refused = post(pair, "/load_lora_adapter", lora_name="of-another", lora_path=str(folder / "of-another"))
    assert (refused.status_code, listed(pair)) == (409, [MODEL, *GIVEN])
    assert "is of another model" in refused.json()["error_message"]

    loaded = post(pair, "/load_lora_adapter", lora_name=LATER, lora_path=str(folder / "later"))
    assert loaded.json()["success"], loaded.text
    assert listed(pair) == [MODEL, *GIVEN, LATER]
    wanted = {LATER: meant.answers[LATER], "sql": meant.answers["sql"], MODEL: meant.answers[""]}
    assert answers(pair, [LATER, "sql", MODEL]) == wanted

    for engine_id in ("decode-0", "prefill-0"):
        before = pair.engine(engine_id)
        os.kill(before["pids"]["host"], signal.SIGKILL)
        pair.wait_until(lambda: pair.engine(engine_id)["incarnation"] > before["incarnation"], BACK_S)  # noqa: B023
        pair.wait_until(lambda: pair.all_ready() and pair.is_ready(), BACK_S)
        assert answers(pair, [LATER, MODEL, "sql"]) == wanted

    gone = post(pair, "/unload_lora_adapter", lora_name=LATER)
    assert gone.json()["success"], gone.text
    assert listed(pair) == [MODEL, *GIVEN]
    answer = post(pair, "/v1/completions", model=LATER, prompt="Hi", max_tokens=2)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert answers(pair, ["sql"]) == {"sql": wanted["sql"]}
