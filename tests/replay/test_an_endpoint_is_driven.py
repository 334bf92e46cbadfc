"""A plan on an endpoint in real time, against a server that answers as OpenAI's completions do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from disagg.replay.endpoint.replay import Endpoint, EndpointLost, replay_on
from disagg.replay.measures import Slo
from disagg.replay.traces.read import read_trace
from disagg.replay.workload import Sampler

DATA = Path(__file__).parent / "data"
SLO = Slo(2.0, 0.5)


class Server:
    """Three events an answer; `refuses` says whose: requests by their order."""

    def __init__(self, refuses: frozenset[int] = frozenset()) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.came_s: list[float] = []
        self._refuses = refuses

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "tiny"}]})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        self.came_s.append(asyncio.get_running_loop().time())
        self.bodies.append(await request.json())
        self.headers.append(request.headers)
        if len(self.bodies) - 1 in self._refuses:
            return web.json_response({"error": {"message": "no room"}}, status=429)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for text in ("a", "b", "c"):
            await response.write(f"data: {json.dumps({'choices': [{'text': text}]})}\n\n".encode())
            await asyncio.sleep(0.01)
        usage = {"completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 64}}
        await response.write(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n".encode())
        return response


@asynccontextmanager
async def served(server: Server) -> AsyncIterator[str]:
    app = web.Application(client_max_size=1 << 26)
    app.add_routes([web.get("/v1/models", server.models), web.post("/v1/completions", server.complete)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_requests_come_at_their_time_and_are_timed() -> None:
    trace = read_trace(DATA / "azure-200.csv")
    plan = Sampler(trace, 10, 64).plan(50.0, seed=1)
    server = Server()
    async with served(server) as url:
        measured, failures = await replay_on(Endpoint(url, key="secret"), plan, trace.block_tokens, SLO)
    assert (measured.requests, measured.failed, list(failures)) == (8, 0, [])
    assert 0 < measured.ttft_p50_s < 1.0
    assert 0.005 < measured.itl_p50_s < 0.5
    assert measured.hit_rate > 0
    by_length = sorted(len(body["prompt"]) for body in server.bodies)
    assert by_length == sorted(each.prompt_tokens for each in plan.requests)
    assert server.bodies[0]["model"] == "tiny"
    assert server.headers[0]["Authorization"] == "Bearer secret"
    apart_s = server.came_s[-1] - server.came_s[0]
    assert apart_s == pytest.approx(plan.requests[-1].at_s - plan.requests[0].at_s, abs=0.2)


async def test_a_closed_loop_waits_for_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("disagg.replay.workload.THINK_MAX_S", 0.05)
    trace = read_trace(DATA / "agentic-200.jsonl.gz")
    plan = Sampler(trace, 8, 64, request_tokens_max=20_000).plan(0.01, seed=1)
    server = Server()
    async with served(server) as url:
        measured, _ = await replay_on(Endpoint(url), plan, trace.block_tokens, SLO)
    assert measured.failed == 0
    assert len(server.bodies) == len(plan.requests)
    assert all(headers["x-session-id"] for headers in server.headers)


async def test_requests_without_an_answer_are_counted() -> None:
    trace = read_trace(DATA / "azure-200.csv")
    plan = Sampler(trace, 10, 64).plan(100.0, seed=1)
    async with served(Server(refuses=frozenset({2, 5}))) as url:
        measured, failures = await replay_on(Endpoint(url), plan, trace.block_tokens, SLO)
    assert measured.failed == 2
    assert failures[0].startswith("status 429")


async def test_where_nobody_serves_it_says_so() -> None:
    trace = read_trace(DATA / "azure-200.csv")
    plan = Sampler(trace, 10, 64).plan(100.0, seed=1)
    with pytest.raises(EndpointLost, match="names no model"):
        await replay_on(Endpoint("http://127.0.0.1:1"), plan, trace.block_tokens, SLO)
