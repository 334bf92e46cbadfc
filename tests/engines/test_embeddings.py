"""Vectors of a real embedding engine are those of transformers: the last hidden state of the last token, as a unit
vector."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from array import array
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from deployment import Deployment, serving

from disagg.cpu_profile.paths import standin_paths
from disagg.models.resolve import resolve_model

TEXTS = ["Who are you?", "The quick brown fox jumps over the lazy dog.", "日本語のテキスト", "x = [1, 2, 3]  # a list"]
HELD = 1024  # tokens
BATCH = [f"{text} {number}" for number in range(10) for text in TEXTS]


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    """It holds so little that its longest input takes seconds on a busy machine."""
    with serving("embedding-cpu", "ray.address=local", f"embedding.engine.max_total_tokens={HELD}") as served:
        yield served


# Runs in a process of its own: transformers, same weights, float32. Reads texts, writes ids and vectors.
REFERENCE = """
import json, sys, torch
from transformers import AutoModel, AutoTokenizer
model = AutoModel.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
answers = []
for text in json.load(sys.stdin):
    ids = tokenizer(text)["input_ids"]
    with torch.inference_mode():
        last = model(torch.tensor([ids])).last_hidden_state[0, -1]
    answers.append([ids, (last / last.norm()).tolist()])
json.dump(answers, sys.stdout)
"""


@pytest.fixture(scope="module")
def reference() -> dict[str, tuple[list[int], list[float]]]:
    """Text -> its ids and its vector."""
    texts = [*TEXTS, *BATCH]
    done = subprocess.run(
        [sys.executable, "-c", REFERENCE, str(resolve_model("smollm2"))],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(standin_paths())},
    )
    return dict(zip(texts, json.loads(done.stdout), strict=True))


def ask(deployment: Deployment, path: str = "/v1/embeddings", **body: Any) -> httpx.Response:
    return httpx.post(deployment.url + path, json={"model": "smollm2"} | body, timeout=120, trust_env=False)


def vectors(answer: httpx.Response) -> list[Any]:
    assert answer.status_code == 200, answer.text
    entries = answer.json()["data"]
    assert [entry["index"] for entry in entries] == list(range(len(entries)))
    return [entry["embedding"] for entry in entries]


def cosine(one: list[float], other: list[float]) -> float:
    assert len(one) == len(other)
    lengths = sum(a * a for a in one) ** 0.5 * sum(b * b for b in other) ** 0.5
    return float(sum(a * b for a, b in zip(one, other, strict=True)) / lengths)


def test_a_text_and_its_ids_give_the_vector_of_transformers(deployment: Any, reference: Any) -> None:
    for text in TEXTS:
        ids, wanted = reference[text]
        answer = ask(deployment, input=text)
        assert answer.json()["usage"] == {"prompt_tokens": len(ids), "total_tokens": len(ids)}
        [of_text], [of_ids] = vectors(answer), vectors(ask(deployment, input=ids))
        assert cosine(of_text, wanted) > 0.9999
        assert cosine(of_ids, of_text) > 0.99999


def test_a_batch_keeps_its_order_in_both_encodings(deployment: Any, reference: Any) -> None:
    of_floats = vectors(ask(deployment, input=BATCH))
    answer = ask(deployment, input=[reference[text][0] for text in BATCH], encoding_format="base64")
    of_base64 = [array("f", base64.b64decode(packed)).tolist() for packed in vectors(answer)]
    for text, one, other in zip(BATCH, of_floats, of_base64, strict=True):
        assert cosine(one, other) > 0.99999
        assert cosine(one, reference[text][1]) > 0.9999


def test_the_longest_input_is_embedded_and_a_longer_one_is_refused(deployment: Any) -> None:
    """The limit that is told is the limit that is: SGLang takes what we take."""
    for tokens, said in ((9000, "the model's context is 8192"), (2 * HELD, "what the engines here can hold is")):
        refused = ask(deployment, input=[1] * tokens)
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (400, "context_length_exceeded")
        assert said in error["message"]
    limit = int(error["message"].split("can hold is ")[1].split(",")[0])
    assert HELD - 16 <= limit <= HELD
    assert ask(deployment, input=[1] * limit).status_code == 400
    assert len(vectors(ask(deployment, input=[1] * (limit - 1)))) == 1


def test_no_request_for_tokens_reaches_it(deployment: Any) -> None:
    for path, more in (("completions", {"prompt": "hi"}), ("chat/completions", {"messages": [{"role": "user"}]})):
        answer = ask(deployment, f"/v1/{path}", **more)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "no_generation_pool"
    assert deployment.engine("embedding-0")["incarnation"] == 1


def test_a_killed_engine_is_replaced_and_embeds_again(deployment: Any) -> None:
    before = vectors(ask(deployment, input=TEXTS))
    os.kill(deployment.engine("embedding-0")["pids"]["schedulers"][0], signal.SIGKILL)
    deployment.wait_until(lambda: deployment.engine("embedding-0")["incarnation"] == 2, 60)
    deployment.wait_until(deployment.is_ready, 200)
    for one, other in zip(before, vectors(ask(deployment, input=TEXTS)), strict=True):
        assert cosine(one, other) > 0.99999
