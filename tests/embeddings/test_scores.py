"""/v1/classify, /v1/rerank and /v1/score: what a model with a head that scores makes of texts and pairs of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from before_engines import SCORER
from vector_scene import scene

from disagg.frontend.vector_answers import softmax
from disagg.models.heads import Head, head_of
from disagg.plane.messages import unpack_floats
from disagg.roles import Role
from disagg.simulated_engine.tokens import answer as generated
from disagg.simulated_engine.tokens import logprobs_of, vector
from disagg.tokenizer.codec import load_codec


def of(ids: list[int], second_at: int = 0) -> list[float]:
    return unpack_floats(vector(ids, second_at))


async def test_classes_have_their_names_and_probabilities(tmp_path: Path) -> None:
    async with scene(tmp_path, config=SCORER) as s:
        answer = (await s.post("/v1/classify", input=[[1, 2], [3]])).json()
        assert [entry["index"] for entry in answer["data"]] == [0, 1]
        for entry, ids in zip(answer["data"], [[1, 2], [3]], strict=True):
            logits = of(ids)
            best = logits.index(max(logits))
            assert entry["label"] == {0: "bad", 1: "good"}.get(best, f"LABEL_{best}")
            assert entry["probs"] == pytest.approx(softmax(logits))
            assert entry["num_classes"] == len(logits)
        assert (answer["object"], answer["usage"]["prompt_tokens"]) == ("list", 3)
        assert answer["id"].startswith("classify-")


async def test_documents_are_ranked_best_first(tmp_path: Path) -> None:
    async with scene(tmp_path, config=SCORER) as s:
        documents = [f"document {number}" for number in range(20)]
        ranked = (await s.post("/v1/rerank", query="q", documents=documents)).json()
        scores = [entry["score"] for entry in ranked]
        assert scores == sorted(scores, reverse=True)
        assert sorted(entry["index"] for entry in ranked) == list(range(20))
        assert all(entry["document"] == documents[entry["index"]] for entry in ranked)
        first = await s.post("/v1/rerank", query="q", documents=documents, top_n=3, return_documents=False)
        assert [entry["index"] for entry in first.json()] == [entry["index"] for entry in ranked[:3]]
        assert not any("document" in entry for entry in first.json())


async def test_the_engine_is_told_where_the_second_text_of_a_pair_begins(tmp_path: Path) -> None:
    """BERT's tokenizer tells the two apart, RoBERTa's does not."""
    for second_type, second_at in ((1, 4), (0, 0)):
        async with scene(tmp_path, config=SCORER, second_type=second_type) as s:
            [entry] = (await s.post("/v1/rerank", query="ab", documents=["cde"])).json()
            ids, found = load_codec(tmp_path).pair_ids("ab", "cde")
            assert (len(ids), found) == (8, second_at)
            assert entry["score"] == of(ids, second_at)[0]


@pytest.mark.parametrize(
    ("body", "ids"),
    [
        ({"query": [1, 2], "items": [[3], [4]]}, [[1, 2, 3], [1, 2, 4]]),
        ({"query": [1, 2], "items": [[3], [4]], "item_first": True}, [[3, 1, 2], [4, 1, 2]]),
    ],
)
async def test_items_are_scored_with_the_query_before_them_or_behind(
    tmp_path: Path, body: Any, ids: list[list[int]]
) -> None:
    async with scene(tmp_path, config=SCORER) as s:
        answer = (await s.post("/v1/score", **body)).json()
        assert answer["scores"] == [of(each) for each in ids]
        assert answer["object"] == "scoring"
        soft = (await s.post("/v1/score", apply_softmax=True, **body)).json()
        assert all(math.fsum(row) == pytest.approx(1.0) for row in soft["scores"])


async def test_texts_are_joined_before_they_are_tokenised(tmp_path: Path) -> None:
    async with scene(tmp_path, config=SCORER) as s:
        one = (await s.post("/v1/score", query="Is it ", items="good?")).json()
        ids = load_codec(tmp_path).text_ids("Is it good?")
        assert one["scores"] == [of(ids)]
        assert one["usage"]["prompt_tokens"] == len(ids)


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("rerank", {"query": "q"}, "missing_required_parameter"),
        ("rerank", {"query": "q", "documents": []}, "empty_array"),
        ("rerank", {"query": "q", "documents": ["d", 1]}, "invalid_type"),
        ("rerank", {"query": "q", "documents": ["d"], "top_n": 0}, "integer_below_min_value"),
        ("score", {"query": "q", "items": ["d"], "label_token_ids": [1]}, "unsupported_parameter"),
        ("score", {"query": "q", "items": [[1]]}, "invalid_type"),
        ("score", {"query": 1, "items": ["d"]}, "invalid_type"),
        ("classify", {"input": "x" * 600}, "context_length_exceeded"),
    ],
)
async def test_what_is_refused(tmp_path: Path, path: str, body: Any, code: str) -> None:
    async with scene(tmp_path, config=SCORER) as s:
        refused = await s.post(f"/v1/{path}", **body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, code)


@pytest.mark.parametrize("is_text", [False, True])
async def test_a_model_that_makes_tokens_scores_labels_by_their_chance_to_come_next(
    tmp_path: Path, is_text: bool
) -> None:
    labels = [7, 9, 8]
    async with scene(tmp_path, Role.AGGREGATED) as s:
        codec = load_codec(tmp_path)
        body: dict[str, Any] = {"query": "Is it ", "items": ["good?", "bad?"]} if is_text else {}
        body = body or {"query": [1, 2], "items": [[3], [4]], "item_first": True}
        prompts = [codec.text_ids("Is it good?"), codec.text_ids("Is it bad?")] if is_text else [[3, 1, 2], [4, 1, 2]]
        answer = (await s.post("/v1/score", label_token_ids=labels, **body)).json()
        firsts = [generated(ids, 1, ignore_eos=True) for ids in prompts]
        rows = [[logprob for _, logprob in logprobs_of(ids, 0, labels)[0].chosen] for ids in firsts]
        assert answer["scores"] == [[math.exp(each) for each in row] for row in rows]
        assert answer["usage"]["prompt_tokens"] == sum(map(len, prompts))
        soft = (await s.post("/v1/score", label_token_ids=labels, apply_softmax=True, **body)).json()
        assert soft["scores"] == [pytest.approx(softmax(row)) for row in rows]
        many = (await s.post("/v1/score", query=[1], items=[[each] for each in range(200)], label_token_ids=[5])).json()
        assert len(many["scores"]) == 200
        await s.settle()


@pytest.mark.parametrize(
    ("labels", "code"),
    [
        (None, "missing_required_parameter"),
        ([], "empty_array"),
        ([259], "invalid_token_id"),
        ([-1], "invalid_token_id"),
        (5, "invalid_type"),
        ([1] * 1025, "array_above_max_length"),
    ],
)
async def test_labels_that_no_engine_could_score(tmp_path: Path, labels: Any, code: str) -> None:
    async with scene(tmp_path, Role.AGGREGATED) as s:
        refused = await s.post("/v1/score", query="q", items=["d"], label_token_ids=labels)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, code)
        assert refused.json()["error"]["param"].startswith("label_token_ids")


async def test_a_model_without_such_a_head_is_not_asked(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        for path in ("classify", "rerank", "score"):
            refused = await s.post(f"/v1/{path}", input="Hi")
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "no_scoring_head")


def test_heads_are_read_as_sglang_reads_them(tmp_path: Path) -> None:
    def read(text: str) -> Head:
        (tmp_path / "config.json").write_text(text)
        return head_of(tmp_path)

    assert read('{"architectures": ["LlamaForCausalLM"], "hidden_size": 64}') == Head(hidden=64)
    assert read('{"architectures": ["LlamaForSequenceClassification"]}').classes == ("LABEL_0", "LABEL_1")
    assert read('{"architectures": ["XLMRobertaForSequenceClassification"], "num_labels": 1}').classes == ("LABEL_0",)
    assert read('{"is_matryoshka": true}').can_be_cut
    assert not read('{"architectures": null, "matryoshka_dimensions": []}').can_be_cut
