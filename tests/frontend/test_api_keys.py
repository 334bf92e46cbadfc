"""With keys set, /v1 opens to those who send one; without, to everybody."""

from __future__ import annotations

import json

import pytest
from scripted import ScriptedBackend, ask, exchange, http_request, says, serving

from disagg.frontend.keys import Keys
from disagg.frontend.tokenizer import Codec

KEYS = Keys(["first-key-0123456789", "second-key-0123456789"])


@pytest.mark.parametrize("key", ["", "Bearer", "Bearer wrong-key-0123456789", "Basic first-key-0123456789"])
async def test_who_has_no_key_gets_401_and_no_engine_sees_it(codec: Codec, key: str) -> None:
    backend = ScriptedBackend(says("Hi"))
    async with serving(backend, codec, keys=KEYS) as frontend:
        headers = [f"authorization: {key}"] if key else []
        for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("DELETE", "/v1/requests/x")):
            answer = await exchange(frontend.port, http_request(method, path, headers=headers))
            assert answer.status == 401
            assert answer.headers["www-authenticate"] == "bearer"
            assert json.loads(answer.body)["error"]["code"] == "invalid_api_key"
    assert backend.requests == []


@pytest.mark.parametrize("key", ["first-key-0123456789", "second-key-0123456789"])
async def test_each_key_opens(codec: Codec, key: str) -> None:
    async with serving(ScriptedBackend(says("Hi")), codec, keys=KEYS) as frontend:
        request = http_request("GET", "/v1/models", headers=[f"Authorization: bearer {key}"])
        assert (await exchange(frontend.port, request)).status == 200


async def test_health_and_metrics_need_none(codec: Codec) -> None:
    async with serving(ScriptedBackend(says("Hi")), codec, keys=KEYS) as frontend:
        for path in ("/health", "/metrics", "/disagg/status"):
            assert (await exchange(frontend.port, http_request("GET", path))).status == 200


async def test_without_keys_everybody_may(codec: Codec) -> None:
    async with serving(ScriptedBackend(says("Hi")), codec) as frontend:
        assert (await exchange(frontend.port, ask())).status == 200
