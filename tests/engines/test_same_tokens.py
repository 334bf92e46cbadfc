"""Prefill + transfer + decode gives the tokens of one engine, and those of transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from deployment import Deployment, serving

from disagg.cpu_profile.paths import standin_paths
from disagg.models.resolve import resolve_model
from tests.todays import todays

NEW_TOKENS = 32
EIGHT_AT_ONCE = 8

# Runs in a process of its own: transformers, same weights, float32. Reads prompts, writes ids and logprob gaps.
REFERENCE = """
import json, sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
torch.set_num_threads(1)  # beside other tests two threads wait for each other most of the time
answers = []
for prompt in json.load(sys.stdin):
    out = model.generate(torch.tensor([prompt]), max_new_tokens=int(sys.argv[2]), do_sample=False, eos_token_id=None,
                         pad_token_id=0, return_dict_in_generate=True, output_logits=True)
    logits = torch.stack([each[0] for each in out.logits]).log_softmax(-1)
    top = logits.topk(2).values
    answers.append({"ids": out.sequences[0, len(prompt):].tolist(), "gap": (top[:, 0] - top[:, 1]).tolist()})
json.dump(answers, sys.stdout)
"""

TEXTS = [
    "The capital of France is",
    "Explain why the sky is blue.",
    "def fibonacci(n):\n    ",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich",
    "東京は日本の首都であり、",
    "Emoji: 🎾🏆👨‍👩‍👧‍👦 means",
    "Привет, как дела?",
    "مرحبا بالعالم",
    "1, 1, 2, 3, 5, 8,",
    "SELECT name FROM users WHERE",
    "Once upon a time, in a land far away,",
    "The three laws of thermodynamics are",
    "To be, or not to be:",
    "Water boils at",
    '{"name": "Roger", "sport":',
]


def _prompts() -> list[list[int]]:
    """Ten prompts: one token, short ones, whole and broken pages of 16, several chunks of 256, 1,500 tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(resolve_model("smollm2") / "tokenizer.json"))
    words = tokenizer.encode(
        " ".join(f"In the year {year} the tennis champion was player {year % 97}." for year in range(1500, 1700))
    )
    sized = [words.ids[:size] for size in (1, 16, 33, 257, 1500)]
    return [*sized, *(tokenizer.encode(text).ids for text in todays(TEXTS, 5))]


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return _prompts()


@pytest.fixture(scope="module")
def reference(prompts: list[list[int]]) -> list[dict[str, list[float]]]:
    answer = subprocess.run(
        [sys.executable, "-c", REFERENCE, str(resolve_model("smollm2")), str(NEW_TOKENS)],
        input=json.dumps(prompts).encode(),
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(standin_paths())},
        check=True,
        timeout=600,
    )
    found: list[dict[str, list[float]]] = json.loads(answer.stdout)
    return found


def _ids(deployment: Deployment, prompt: list[int]) -> tuple[list[int], str]:
    answer = deployment.complete(prompt, max_tokens=NEW_TOKENS, ignore_eos=True, return_token_ids=True)
    return answer["choices"][0]["token_ids"], answer["request_id"]


def _assert_same(name: str, got: list[int], want: dict[str, list[float]]) -> None:
    if got != want["ids"]:
        at = next(i for i, (a, b) in enumerate(zip(got, want["ids"], strict=True)) if a != b)
        pytest.fail(f"{name}: token {at} is {got[at]}, not {want['ids'][at]}; logprob gap there {want['gap'][at]:.2e}")


def test_aggregated_tokens_equal_transformers(
    prompts: list[list[int]], reference: list[dict[str, list[float]]]
) -> None:
    with serving("configs/local-cpu-aggregated.yaml", "ray.address=local") as aggregated, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda prompt: _ids(aggregated, prompt), prompts))
    for number, ((ids, _), want) in enumerate(zip(answers, reference, strict=True)):
        _assert_same(f"aggregated, prompt {number}", ids, want)


# In this order: the first round meets a cold prefix cache, the second a warm one.


def test_tokens_equal_with_a_cold_cache(
    pair: Deployment, prompts: list[list[int]], reference: list[dict[str, list[float]]]
) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda prompt: _ids(pair, prompt), prompts))
    for number, ((ids, request_id), want) in enumerate(zip(answers, reference, strict=True)):
        _assert_same(f"cold, prompt {number}", ids, want)
        assert pair.timeline(request_id)["kv_bytes"] > 0


def test_tokens_equal_with_a_warm_cache_and_eight_at_once(
    pair: Deployment, prompts: list[list[int]], reference: list[dict[str, list[float]]]
) -> None:
    with ThreadPoolExecutor(EIGHT_AT_ONCE) as pool:
        answers = list(pool.map(lambda prompt: _ids(pair, prompt), prompts))
    cached = 0
    for number, ((ids, request_id), want) in enumerate(zip(answers, reference, strict=True)):
        _assert_same(f"warm, prompt {number}", ids, want)
        way = pair.timeline(request_id)
        assert way["kv_bytes"] > 0
        cached += way["cached_tokens"]
    assert cached > 1500, "the second round found nothing in the prefix cache"
