"""/flush_cache empties the prefix caches of all engines, and names those that are busy."""

from __future__ import annotations

import pytest

from disagg.tokenizer.codec import Codec
from tests.frontend.scripted import ScriptedBackend, exchange, http_request, says, serving


@pytest.mark.parametrize(("method", "query", "wait_s"), [("POST", "", 0.0), ("GET", "?timeout=1.5", 1.5)])
async def test_all_are_flushed(codec: Codec, method: str, query: str, wait_s: float) -> None:
    backend = ScriptedBackend(says("x"), flushes={"prefill-0#1": "", "decode-0#2": ""})
    async with serving(backend, codec) as frontend:
        answer = await exchange(frontend.port, http_request(method, f"/flush_cache{query}"))
    assert (answer.status, backend.flushed) == (200, [wait_s])
    assert answer.body == b"Cache flushed.\nprefill-0#1: flushed\ndecode-0#2: flushed\n"


async def test_who_is_busy_is_named(codec: Codec) -> None:
    backend = ScriptedBackend(says("x"), flushes={"prefill-0#1": "", "decode-0#2": "requests run there"})
    async with serving(backend, codec) as frontend:
        answer = await exchange(frontend.port, http_request("POST", "/flush_cache"))
    assert (answer.status, answer.json["error"]["code"]) == (400, "cache_not_flushed")
    said = answer.json["error"]["message"]
    assert said.startswith("not flushed: decode-0#2: requests run there. Flushed: prefill-0#1.")


@pytest.mark.parametrize("timeout", ["-1", "61", "nan", "x", "1e999"])
async def test_a_wait_that_is_none_is_refused(codec: Codec, timeout: str) -> None:
    backend = ScriptedBackend(says("x"))
    async with serving(backend, codec) as frontend:
        answer = await exchange(frontend.port, http_request("POST", f"/flush_cache?timeout={timeout}"))
    assert (answer.status, answer.json["error"]["param"], backend.flushed) == (400, "timeout", [])
