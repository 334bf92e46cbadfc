"""SGLang's /abort_request takes an id as an answer has it."""

from __future__ import annotations

import asyncio
import json

import pytest

from disagg.frontend.receiving import ID_PREFIXES
from disagg.tokenizer.codec import Codec
from tests.frontend.scripted import ScriptedBackend, ask, exchange, hangs, http_request, serving, until


@pytest.mark.parametrize("prefix", ["", *ID_PREFIXES])
async def test_with_or_without_the_prefix_of_its_api(codec: Codec, prefix: str) -> None:
    backend = ScriptedBackend(hangs("Hi"))
    async with serving(backend, codec) as frontend:
        task = asyncio.create_task(exchange(frontend.port, ask()))
        await until(lambda: bool(backend.requests))
        rid = prefix + backend.requests[0].id
        body = json.dumps({"rid": rid}).encode()
        answer = await exchange(frontend.port, http_request("POST", "/abort_request", body))
        assert answer.json == {"rid": rid, "aborted": True}
        unknown = json.dumps({"rid": prefix + "0" * 32}).encode()
        other = await exchange(frontend.port, http_request("POST", "/abort_request", unknown))
        assert other.json["aborted"] is False
        task.cancel()
