"""The campaign of random requests tells an answer from a refusal from a failure, and sees an engine's death."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from benchmarks import random_requests
from benchmarks.random_requests import campaign, random_bodies

Answers = Callable[[int], tuple[int, dict[str, Any] | bytes]]
GOOD = (200, {"choices": []})


@asynccontextmanager
async def door(answers: Answers, incarnations: tuple[int, int] = (1, 1)) -> AsyncIterator[str]:
    """Answers the nth request with `answers(n)`; the engine's incarnation before and after is as given."""
    numbers, lives = itertools.count(), iter(incarnations)

    async def complete(request: web.Request) -> web.Response:
        status, body = answers(next(numbers))
        if isinstance(body, dict) and (await request.json())["stream"] and status == 200:
            body = b"data: {}\n\ndata: [DONE]\n\n"
        return (
            web.Response(status=status, body=body)
            if isinstance(body, bytes)
            else web.json_response(body, status=status)
        )

    async def status(_request: web.Request) -> web.Response:
        return web.json_response({"engines": [{"id": "decode-0", "incarnation": next(lives), "state": "ready"}]})

    app = web.Application()
    app.add_routes([web.post("/v1/completions", complete), web.get("/disagg/status", status)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def _error(code: str, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": "no", "type": "x", "param": param, "code": code}}


async def test_answers_and_refusals_by_name_pass() -> None:
    refusal = 400, _error("decimal_below_min_value", "top_p")
    async with door(lambda n: refusal if n % 10 == 0 else GOOD) as url:
        result = await campaign(url, count=40, concurrency=4)
    assert (result.answered, result.refused) == (36, {"top_p decimal_below_min_value": 4})
    assert result.passed, result.table()


async def test_a_server_error_does_not_pass_and_its_body_is_shown() -> None:
    async with door(lambda n: (503, _error("no_ready_pair")) if n == 7 else GOOD) as url:
        result = await campaign(url, count=20, concurrency=2)
    assert result.failed == {"503 no_ready_pair": 1}
    assert not result.passed
    assert '"max_tokens"' in result.table()


async def test_a_refusal_that_names_nothing_and_a_stream_that_is_cut_do_not_pass() -> None:
    cut = 200, b'data: {"error": {"code": "leg_lost"}}\n\n'
    async with door(lambda n: (400, _error("invalid_json")) if n == 0 else cut) as url:
        result = await campaign(url, count=30, concurrency=1)
    assert result.failed["400 invalid_json"] == 1
    assert result.failed["200 leg_lost"] > 0
    assert not result.passed


async def test_a_full_deployment_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_requests, "FULL_PAUSE_S", 0.0)
    async with door(lambda n: (429, _error("overloaded")) if n % 2 == 0 else GOOD) as url:
        result = await campaign(url, count=10, concurrency=1)
    assert (result.answered, result.full) == (10, 10)
    assert result.passed, result.table()


async def test_an_engine_that_died_does_not_pass_though_all_were_answered() -> None:
    async with door(lambda _n: GOOD, incarnations=(1, 3)) as url:
        result = await campaign(url, count=10, concurrency=2)
    assert (result.answered, result.died) == (10, ["decode-0 2 times"])
    assert not result.passed


def test_a_seed_decides_every_request() -> None:
    assert list(random_bodies(5, 50, "m")) == list(random_bodies(5, 50, "m")) != list(random_bodies(6, 50, "m"))
    assert sum("seed" in body for body in random_bodies(1, 600, "m")) in range(250, 350)
