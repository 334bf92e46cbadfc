"""Two frontends share a port: whichever is asked, the answer is the deployment's.

Real: the frontends' processes, their sockets, the registry's, and the request plane. The engine is simulated.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import httpx
import pytest
from one_engine import engine_record

from disagg.cluster.frontend_process import Frontends
from disagg.cluster.ports import free_port
from disagg.coordinator.limits import Limits
from disagg.frontend.spec import FrontendSpec, ModelSpec
from disagg.host_spec import SECRET_VARIABLE
from disagg.models.catalogue import model_folder
from disagg.registry.control import ControlServer
from disagg.registry.memory import MemoryRegistry
from disagg.registry.served import RegistryServer

SECRET = b"s" * 32
BOTH = {"0000", "0001"}  # what ids of their requests begin with
TRIES = 40  # connections, of which the kernel gives each frontend about half


class Two:
    def __init__(self, url: str, registry: MemoryRegistry) -> None:
        self.url, self.registry = url, registry

    async def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Over a connection of its own."""
        async with httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=30) as client:
            return await client.request(method, path, **more)

    async def complete(self, **more: Any) -> httpx.Response:
        body = {"model": "m", "prompt": [7] * 20, "max_tokens": 3, **more}
        answer = await self.ask("POST", "/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        return answer

    async def of_each(self) -> dict[str, str]:
        """A request's id for each frontend, by what it begins with."""
        ids: dict[str, str] = {}
        for _ in range(TRIES):
            request_id = (await self.complete()).headers["x-request-id"]
            ids[request_id[:4]] = request_id
            if ids.keys() == BOTH:
                return ids
        raise AssertionError(ids)


@asynccontextmanager
async def two_frontends() -> AsyncIterator[Two]:
    async def nothing(*_: object) -> None: ...

    async with AsyncExitStack() as stack:
        registry = MemoryRegistry()
        await registry.put(await engine_record(stack, SECRET))
        server = RegistryServer(registry, SECRET)
        control = ControlServer(SECRET, nothing, nothing, lambda _prefill, _decode: None)
        spec = FrontendSpec(
            registry=f"127.0.0.1:{await server.start('127.0.0.1')}",
            control=f"127.0.0.1:{await control.start('127.0.0.1')}",
            host="127.0.0.1",
            port=free_port(),
            body_limit_bytes=1 << 20,
            models=(ModelSpec(path=str(model_folder("smollm2")), name="m"),),
            number=0,
            stop_s=1.0,
            limits=Limits(),
            open_metrics=True,
        )
        stack.push_async_callback(control.close)
        stack.push_async_callback(server.close)
        frontends = Frontends(spec, 2, os.environ | {SECRET_VARIABLE: SECRET.hex()}, registry)
        stack.push_async_callback(frontends.stop)
        await frontends.start()
        keeping = asyncio.create_task(frontends.keep_alive())
        stack.callback(keeping.cancel)
        two = Two(f"http://127.0.0.1:{spec.port}", registry)
        async with asyncio.timeout(30):
            while not all([(await two.ask("GET", "/ready")).status_code == 200 for _ in range(8)]):
                await asyncio.sleep(0.05)
        yield two


async def test_any_of_them_answers_for_all() -> None:
    if not (model_folder("smollm2") / "tokenizer.json").exists():
        pytest.skip("disagg model get smollm2")
    async with two_frontends() as two:
        ids = await two.of_each()
        await _timelines_of_all(two, ids)
        await _counts_of_all(two)
        await _a_conversation_goes_on(two)
        await _a_running_one_is_seen_and_cancelled(two)
        await _any_page_shows_requests_of_both(two)
        await _one_is_killed_and_comes_back(two)


async def _timelines_of_all(two: Two, ids: dict[str, str]) -> None:
    for request_id in ids.values():
        for _ in range(TRIES // 4):
            told = await two.ask("GET", f"/disagg/requests/{request_id}")
            assert (told.status_code, told.json()["id"]) == (200, request_id)
    for unknown in ("0001" + "f" * 28, "0007" + "f" * 28, "nonsense"):
        told = await two.ask("GET", f"/disagg/requests/{unknown}")
        assert (told.status_code, told.json()["error"]["code"]) == (404, "request_not_found")


async def _counts_of_all(two: Two) -> None:
    def finished(said: str) -> int:
        of_each = dict(re.findall(r'disagg_requests_total{frontend="(.)",phase="finished"} (\S+)', said))
        assert of_each.keys() == {"0", "1"}
        return sum(int(float(count)) for count in of_each.values())

    before = finished((await two.ask("GET", "/metrics")).text)
    for _ in range(6):
        await two.complete()
    for _ in range(6):
        said = (await two.ask("GET", "/metrics")).text
        assert finished(said) == before + 6
        first = re.findall(r'disagg_ttft_seconds_count{frontend="."} (\S+)', said)
        assert sum(map(float, first)) == before + 6
        assert "disagg_engines_ready 1.0" in said


async def _a_conversation_goes_on(two: Two) -> None:
    asked = {"model": "m", "input": "hello", "max_output_tokens": 16}
    first = (await two.ask("POST", "/v1/responses", json=asked)).json()
    for _ in range(TRIES // 4):
        more = await two.ask("POST", "/v1/responses", json={**asked, "previous_response_id": first["id"]})
        assert more.status_code == 200, more.text
    unknown = {**asked, "previous_response_id": "resp_0001" + "f" * 28}
    assert (await two.ask("POST", "/v1/responses", json=unknown)).status_code == 400


async def _a_running_one_is_seen_and_cancelled(two: Two) -> None:
    async with httpx.AsyncClient(base_url=two.url, trust_env=False, timeout=30) as client:
        body = {"model": "m", "prompt": [7] * 20, "max_tokens": 4000, "stream": True, "ignore_eos": True}
        async with client.stream("POST", "/v1/completions", json=body) as stream:
            request_id = stream.headers["x-request-id"]
            for _ in range(8):
                status = (await two.ask("GET", "/disagg/status")).json()
                assert [each["number"] for each in status["frontends"]] == [0, 1]
                assert status["engines"][0]["in_flight_by_rank"] == [1]
                live = [each["id"] for frontend in status["frontends"] for each in frontend["live"]]
                assert live == [request_id]
            cancelled = await two.ask("DELETE", f"/v1/requests/{request_id}")
            assert cancelled.status_code == 200, cancelled.text
            assert "cancelled" in (await stream.aread()).decode()
    assert (await two.ask("DELETE", f"/v1/requests/{request_id}")).status_code == 404


async def _any_page_shows_requests_of_both(two: Two) -> None:
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=two.url, trust_env=False, timeout=30))
        running: dict[str, str] = {}
        body = {"model": "m", "prompt": [7] * 20, "max_tokens": 4000, "stream": True, "ignore_eos": True}
        while running.keys() != BOTH:
            stream = await stack.enter_async_context(client.stream("POST", "/v1/completions", json=body))
            request_id = stream.headers["x-request-id"]
            running[request_id[:4]] = request_id
        pages = [await stack.enter_async_context(client.stream("GET", "/disagg/events")) for _ in range(4)]
        for page in pages:
            silent: list[int] = []  # on a busy machine one may be late for a tick
            async with asyncio.timeout(20):
                async for line in page.aiter_lines():
                    told = json.loads(line[6:]) if line.startswith("data: ") else {"type": ""}
                    silent = told.get("silent", silent)
                    live = {each["id"] for each in told.get("live", [])}
                    if not silent and live >= {*running.values()}:
                        break


async def _one_is_killed_and_comes_back(two: Two) -> None:
    killed = two.registry.frontends[1].pid
    os.kill(killed, signal.SIGKILL)
    async with asyncio.timeout(40):
        while (there := two.registry.frontends.get(1)) is None or there.pid == killed:
            with suppress(httpx.TransportError):  # what it had accepted
                await two.complete()
            await asyncio.sleep(0.05)
    assert (await two.of_each()).keys() == BOTH
