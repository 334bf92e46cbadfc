"""POST /v1/embeddings before simulated engines: each input one request, one answer, whatever happens on the way."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest
from scripted import CONTEXT, MODEL, until
from vector_scene import scene

from disagg.frontend import embeddings, inputs
from disagg.plane.messages import unpack_floats
from disagg.roles import Role
from disagg.simulated_engine.tokens import DIMENSIONS, answer, vector
from disagg.tokenizer.short_bodies import is_short

IDS = [[1 + at % 200, 2 + at // 200, 3, *range(at % 7)] for at in range(300)]


def of(ids: list[int]) -> list[float]:
    return unpack_floats(vector(ids))


async def test_a_text_a_list_of_texts_ids_and_lists_of_ids(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        [one] = await s.vectors("Hi")
        assert await s.vectors(["Hi", "Ho", "Hi"]) == [one, *await s.vectors("Ho"), one]
        assert await s.vectors([7, 8.0, 9]) == [of([7, 8, 9])]
        assert await s.vectors([[7, 8], [9]]) == [of([7, 8]), of([9])]
        assert await s.vectors(["Hi", [9]]) == [one, of([9])]
        assert len(one) == DIMENSIONS
        assert sum(number * number for number in one) == pytest.approx(1.0)


async def test_a_large_batch_keeps_its_order_and_goes_to_all_engines(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        asked = asyncio.create_task(s.vectors(IDS))
        await until(lambda: all(engine.legs_live > 3 for engine in s.engines))
        assert await asked == [of(ids) for ids in IDS]
        usage = (await s.post(input=IDS)).json()["usage"]
        assert usage == {"prompt_tokens": sum(map(len, IDS)), "total_tokens": sum(map(len, IDS))}
        await s.settle()


async def test_no_more_than_so_many_of_a_batch_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "AT_ONCE", 4)
    async with scene(tmp_path, Role.EMBEDDING) as s:
        most = 0
        asked = asyncio.create_task(s.vectors(IDS[:40]))
        while not asked.done():
            most = max(most, len(s.coordinator.live))
            await asyncio.sleep(0)
        assert await asked == [of(ids) for ids in IDS[:40]]
        assert most == 4


async def test_base64_holds_the_same_floats(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        [packed], [floats] = await s.vectors("Hi", encoding_format="base64"), await s.vectors("Hi")
        assert unpack_floats(base64.b64decode(packed)) == floats


async def test_a_long_body_is_read_elsewhere_and_answered_alike(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        long = [[at % 250] * 80 for at in range(150)]
        assert len(json.dumps(long)) > 32 << 10
        assert await s.vectors(long) == [of(ids) for ids in long]


def test_a_short_body_of_many_texts_is_read_elsewhere() -> None:
    """Each is tokenised by itself: 2,048 of one letter would hold up everybody's streams for 20 ms."""
    few, many = (json.dumps({"model": MODEL, "input": ["x"] * count}).encode() for count in (400, 600))
    assert is_short(few, is_fast=True, endpoint="embd")
    assert not is_short(many, is_fast=True, endpoint="embd")
    assert len(many) < 8 << 10
    assert is_short(json.dumps({"model": MODEL, "input": [1] * 2000}).encode(), is_fast=True, endpoint="embd")


async def test_an_engine_dies_and_its_inputs_go_to_the_other_one(tmp_path: Path) -> None:
    async with scene(tmp_path, prefill_token_s=0.005) as s:
        asked = asyncio.create_task(s.vectors(IDS[:80]))
        await until(lambda: s.engines[0].legs_live > 3)
        s.servers[0].close()
        s.engines[0].stop()
        assert await asked == [of(ids) for ids in IDS[:80]]
        assert any(s.coordinator.find(each).tries > 1 for each in list(s.coordinator._ended))  # type: ignore[union-attr]


async def test_the_first_input_that_fails_ends_all(tmp_path: Path) -> None:
    async with scene(tmp_path, Role.EMBEDDING, prefill_token_s=0.05) as s:
        asked = asyncio.create_task(s.post(input=IDS[:30]))
        await until(lambda: s.legs > 5)
        s.servers[0].close()
        s.engines[0].stop()
        failed = await asked
        assert failed.status_code in (502, 503)
        await until(lambda: not s.coordinator.live)


async def test_a_client_that_leaves_ends_all_its_inputs(tmp_path: Path) -> None:
    async with scene(tmp_path, prefill_token_s=0.05) as s:
        asked = asyncio.create_task(s.post(input=IDS[:100]))
        await until(lambda: s.legs > 5)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        await s.settle()


async def test_it_is_cancelled_by_its_id(tmp_path: Path) -> None:
    async with scene(tmp_path, prefill_token_s=0.05) as s:
        asked = asyncio.create_task(s.post(input=IDS[:20]))
        await until(lambda: s.legs > 5)
        request_id = next(iter(s.coordinator.live))
        assert (await s.client.delete(f"{s.url}/v1/requests/{request_id}")).status_code == 200
        assert (await asked).status_code == 499
        await s.settle()


async def test_vectors_beside_tokens_each_from_their_own_engines(tmp_path: Path) -> None:
    async with scene(tmp_path, Role.AGGREGATED, Role.EMBEDDING) as s:
        texts = await asyncio.gather(
            *(s.post("/v1/completions", prompt=[at], max_tokens=3, return_token_ids=True) for at in range(10)),
        )
        assert await s.vectors(IDS[:50]) == [of(ids) for ids in IDS[:50]]
        for at, each in enumerate(texts):
            assert each.json()["choices"][0]["token_ids"] == answer([at], 3)
        assert s.service.ready() == (True, "")
        s.servers[1].close()
        s.engines[1].stop()
        refused = await s.post(input="Hi")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_ready_pair")
        assert s.service.ready() == (True, "")
        assert (await s.post("/v1/completions", prompt="Hi", max_tokens=3)).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "code", "said"),
    [
        ({}, 400, "missing_required_parameter", "'input' is missing"),
        ({"input": ""}, 400, "empty_prompt", "'input' is empty"),
        ({"input": []}, 400, "empty_array", "'input' is empty"),
        ({"input": ["Hi", " "]}, 400, "empty_prompt", "'input[1]'"),
        ({"input": [[]]}, 400, "empty_array", "'input[0]'"),
        ({"input": {}}, 400, "invalid_type", "'input' must be"),
        ({"input": [{}]}, 400, "invalid_type", "'input[0]'"),
        ({"input": [[1, "x"]]}, 400, "invalid_type", "'input[0][1]'"),
        ({"input": [[1, 259]]}, 400, "invalid_token_id", "0 to 258"),
        ({"input": "x" * CONTEXT}, 400, "context_length_exceeded", f"has {CONTEXT} tokens"),
        ({"input": ["Hi", "x" * CONTEXT]}, 400, "context_length_exceeded", f"'input[1]' has {CONTEXT} tokens"),
        ({"input": [[1] * (CONTEXT - 1), [1] * CONTEXT]}, 400, "context_length_exceeded", "Nothing is cut"),
        ({"input": ["Hi"] * 2049}, 400, "array_above_max_length", "at most 2048"),
        ({"input": "Hi", "encoding_format": "int8"}, 400, "invalid_value", "'float' or 'base64'"),
        ({"input": "Hi", "dimensions": 8}, 400, "unsupported_parameter", "leave it out"),
        ({"input": "Hi", "model": "other"}, 404, "model_not_found", MODEL),
        ({"input": "Hi", "temperature": 1}, 400, "unknown_parameter", "'temperature'"),
        ({"input": "Hi", "rid": "x"}, 400, "forbidden_parameter", "'rid'"),
    ],
)
async def test_what_is_refused_and_how(tmp_path: Path, body: Any, status: int, code: str, said: str) -> None:
    async with scene(tmp_path) as s:
        refused = await s.post(**body)
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (status, code)
        assert said in error["message"]


async def test_the_tokens_of_a_batch_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "TOKENS_MAX", 100)
    async with scene(tmp_path) as s:
        assert len(await s.vectors([[1] * 50] * 2)) == 2
        refused = await s.post(input=[[1] * 50, [1] * 51])
        assert refused.json()["error"]["code"] == "too_many_tokens"


async def test_what_the_engines_hold_bounds_an_input(tmp_path: Path) -> None:
    async with scene(tmp_path, kv_tokens=256) as s:
        assert len(await s.vectors([1] * 254)) == 1
        refused = await s.post(input=[1] * 255)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
        assert "what the engines here can hold is 255" in refused.json()["error"]["message"]


async def test_a_model_trained_for_it_is_cut_and_stays_a_unit_vector(tmp_path: Path) -> None:
    config = {"matryoshka_dimensions": [8, 32], "hidden_size": DIMENSIONS}
    async with scene(tmp_path, config=config) as s:
        [whole], [cut] = await s.vectors("Hi"), await s.vectors("Hi", dimensions=8)
        length = sum(number * number for number in whole[:8]) ** 0.5
        assert cut == pytest.approx([number / length for number in whole[:8]], rel=1e-6)
        refused = await s.post(input="Hi", dimensions=9)
        assert "trained for 8, 32" in refused.json()["error"]["message"]


async def test_a_deployment_without_embedding_engines_says_so(tmp_path: Path) -> None:
    async with scene(tmp_path, Role.AGGREGATED) as s:
        for path in ("embeddings", "classify", "rerank"):
            refused = await s.post(f"/v1/{path}", input="Hi")
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "no_embedding_pool")


async def test_a_deployment_of_embedding_engines_alone_makes_no_tokens(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        for path in ("chat/completions", "completions"):
            refused = await s.post(f"/v1/{path}", prompt="Hi")
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "no_generation_pool")
        assert (await s.client.get(f"{s.url}/ready")).status_code == 200
        assert not any(engine.is_gone for engine in s.engines)
