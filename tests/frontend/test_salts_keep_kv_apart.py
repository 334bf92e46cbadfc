"""SGLang's `cache_salt` and `extra_key` reach the legs as one word: equal where both are, and nowhere else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from scripted import MODEL, ScriptedBackend, exchange, http_request, says, serving

from disagg.frontend.cache_salt import salt_of
from disagg.tokenizer.codec import Codec

MESSAGES = [{"role": "user", "content": "Hi"}]
ENDPOINTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": ["Hi", "Ho"]},
    "/v1/responses": {"input": "Hi"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 4},
    "/generate": {"text": "Hi"},
}
EVERYWHERE = pytest.mark.parametrize("path", ENDPOINTS)


def post(path: str, said: dict[str, Any]) -> bytes:
    return http_request("POST", path, json.dumps({"model": MODEL, **ENDPOINTS[path], **said}).encode())


@EVERYWHERE
@pytest.mark.parametrize(
    "said",
    [{}, {"cache_salt": "a"}, {"extra_key": "a"}, {"cache_salt": ["a", "a"]}, {"cache_salt": ""}, {"extra_key": None}],
    ids=str,
)
async def test_it_reaches_each_request(codec: Codec, path: str, said: dict[str, Any]) -> None:
    backend = ScriptedBackend(says("Hi"))
    async with serving(backend, codec) as frontend:
        answer = await exchange(frontend.port, post(path, said))
    assert answer.status == 200, answer.body
    assert {request.salt for request in backend.requests} == {salt_of(said)}


@EVERYWHERE
@pytest.mark.parametrize("name", ["cache_salt", "extra_key"])
@pytest.mark.parametrize(
    ("value", "code"), [(5, "invalid_type"), (["a", "b"], "unsupported_parameter"), ([5], "invalid_type")], ids=str
)
async def test_a_value_that_cannot_be_kept_is_refused(
    codec: Codec, path: str, name: str, value: Any, code: str
) -> None:
    backend = ScriptedBackend(says("Hi"))
    async with serving(backend, codec) as frontend:
        answer = await exchange(frontend.port, post(path, {name: value}))
    assert answer.status == 400
    if path != "/v1/messages":  # whose refusals are Anthropic's, without these two
        assert (answer.json["error"]["param"], answer.json["error"]["code"]) == (name, code)
    assert not backend.requests


@EVERYWHERE
@pytest.mark.parametrize("name", ["cache_salt", "extra_key"])
async def test_it_is_refused_where_an_engine_would_share_all_the_same(codec: Codec, path: str, name: str) -> None:
    backend = ScriptedBackend(says("Hi"), ignored={"cache_salt": "install another release"})
    async with serving(backend, codec) as frontend:
        answer = await exchange(frontend.port, post(path, {name: "a"}))
    assert answer.status == 400
    assert "engines here would ignore 'cache_salt'" in answer.json["error"]["message"]
    assert not backend.requests


def test_one_word_for_each_two_and_it_says_neither() -> None:
    bodies: list[dict[str, Any]] = [{"cache_salt": "secret"}, {"extra_key": "secret"}]
    bodies += [{"cache_salt": "secret", "extra_key": "secret"}, {"cache_salt": "secret6 secret"}]
    bodies += [{"cache_salt": "secre", "extra_key": "t"}, {"cache_salt": "t", "extra_key": "secre"}]
    words = {salt_of(body) for body in bodies}
    assert len(words) == len(bodies)
    assert not any("secret" in word for word in words)
    assert {len(word) for word in words} == {32}
