"""A request for vectors or scores names an adapter as a request for tokens does, and gets what that makes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from before_engines import SCORER
from scripted import MODEL
from vector_scene import scene

from disagg.plane.messages import unpack_floats
from disagg.roles import Role
from disagg.simulated_engine.tokens import answer, logprobs_of, vector

ADAPTERS = ("sql", "fr")
INPUTS = [[1, 2], [3]]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": INPUTS},
    "/v1/classify": {"input": INPUTS},
    "/v1/rerank": {"query": "q", "documents": ["a", "b"]},
    "/v1/score": {"query": [1], "items": [[2], [3]]},
}
NAMED = pytest.mark.parametrize(
    ("named", "adapter"),
    [
        ({"model": MODEL}, ""),
        ({"model": "sql"}, "sql"),
        ({"model": f"{MODEL}:fr"}, "fr"),
        ({"model": MODEL, "lora_path": "fr"}, "fr"),
        ({"model": MODEL, "lora_path": ["sql", "sql"]}, "sql"),
    ],
    ids=str,
)


def of(ids: list[int], adapter: str) -> list[float]:
    return unpack_floats(vector(ids, 0, adapter))


@NAMED
async def test_the_engine_makes_it_with_the_adapter(tmp_path: Path, named: dict[str, Any], adapter: str) -> None:
    async with scene(tmp_path, config=SCORER, adapters=ADAPTERS) as s:
        for path, body in BODIES.items():
            told = await s.post(path, **body, **named)
            assert told.status_code == 200, told.text
            if path != "/v1/rerank":  # whose answer names no model
                assert told.json()["model"] == named["model"]
        assert await s.vectors(INPUTS, **named) == [of(ids, adapter) for ids in INPUTS]
        scored = await s.post("/v1/score", query=[1], items=[[2], [3]], **named)
        assert scored.json()["scores"] == [of([1, last], adapter) for last in (2, 3)]


async def test_a_body_that_names_no_model_may_name_an_adapter(tmp_path: Path) -> None:
    async with scene(tmp_path, config=SCORER, adapters=ADAPTERS) as s:
        told = await s.post("/v1/score", query=[1], items=[[2]], model=None, lora_path="sql")
        assert (told.json()["scores"], told.json()["model"]) == ([of([1, 2], "sql")], MODEL)


@NAMED
async def test_labels_are_scored_with_it(tmp_path: Path, named: dict[str, Any], adapter: str) -> None:
    async with scene(tmp_path, Role.AGGREGATED, adapters=ADAPTERS) as s:
        told = await s.post("/v1/score", query=[1], items=[[2]], label_token_ids=[7, 9], **named)
        chosen = logprobs_of(answer([1, 2], 1, True, adapter), 0, [7, 9])[0].chosen
        assert told.json()["scores"] == [[math.exp(logprob) for _, logprob in chosen]]


@pytest.mark.parametrize(
    ("named", "param", "status"),
    [
        ({"model": "law"}, "model", 404),
        ({"lora_path": "law"}, "lora_path", 404),
        ({"model": "sql", "lora_path": "fr"}, "lora_path", 400),
        ({"lora_path": ["sql", "fr"]}, "lora_path", 400),
        ({"lora_path": 5}, "lora_path", 400),
    ],
    ids=str,
)
async def test_a_name_that_is_not_there_is_refused(
    tmp_path: Path, named: dict[str, Any], param: str, status: int
) -> None:
    async with scene(tmp_path, config=SCORER, adapters=ADAPTERS) as s:
        for path, body in BODIES.items():
            refused = await s.post(path, **body, **named)
            assert (refused.status_code, refused.json()["error"]["param"]) == (status, param)
        assert not any(sum(server.adapters.legs.values()) for server in s.servers)
