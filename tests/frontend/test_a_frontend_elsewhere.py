"""`disagg frontend` beside a deployment's own frontends: it serves the same, is asked by the others and asks them, and
stays when they go.

Real: the frontends' processes, the registry in a folder, the request plane, the command. The engine is simulated, and
the controller is a Publisher.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
from msgspec.structs import replace
from one_engine import engine_record

from disagg.cluster import lone_frontend
from disagg.cluster.frontend_process import Frontends
from disagg.cluster.lone_frontend import Wanted, serve_alone
from disagg.cluster.ports import free_port
from disagg.coordinator.limits import Limits
from disagg.errors import StartError
from disagg.frontend.published import published, sealed
from disagg.frontend.spec import FrontendSpec, ModelSpec
from disagg.host_spec import SECRET_VARIABLE
from disagg.models.catalogue import model_folder
from disagg.models.digest import text_digest
from disagg.registry.control import ControlServer
from disagg.registry.file_store import FileStore
from disagg.registry.keys import OUTSIDE, Keys, read
from disagg.registry.memory import MemoryRegistry
from disagg.registry.publisher import Publisher
from disagg.registry.records import ControllerRecord
from disagg.registry.sealed import Secret
from disagg.registry.shared import FileAt, Shared

pytestmark = pytest.mark.slow

TEXT, KEYS = "0123456789abcdef" * 4, Keys("prod", "chat", "m")
SECRET = Secret(TEXT, KEYS)
HERE = "127.0.0.1"
LEASE_S = 3.0
KEY = "a-key-0123456789"


@dataclass
class Scene:
    folder: Path
    registry: MemoryRegistry
    frontends: Frontends
    spec: FrontendSpec

    async def publish(self, spec: FrontendSpec) -> None:
        await self.registry.put_spec(sealed(published(spec, LEASE_S, origins_said=False), SECRET))

    async def outside(self) -> int:
        """Frontends that are not the controller's and listen, as the registry has them."""
        store = FileStore(self.folder)
        there = read((await store.snapshot(KEYS.frontends)).entries).frontends
        await store.close()
        return sum(record is not None and record.number >= OUTSIDE and bool(record.peer) for record in there.values())

    @asynccontextmanager
    async def elsewhere(self, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
        """`disagg frontend`."""
        words = ("frontend", "--registry", f"file:{self.folder}", "--deployment", "chat", "--namespace", "prod")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "disagg.cli.main", *words, "--port", str(port)),
            env=os.environ | {"DISAGG_SECRET": TEXT},
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def refusal(self, text: str = TEXT, namespace: str = "prod") -> str:
        """Of a `disagg frontend` that does not come up."""
        keys = Keys(namespace, "chat")
        wanted = Wanted(Shared(FileAt(str(self.folder)), keys), Secret(text, keys))
        with pytest.raises(StartError) as raised:
            await serve_alone(wanted)
        return raised.value.message


@asynccontextmanager
async def deployment(folder: Path) -> AsyncIterator[Scene]:
    async def nothing(*_: object) -> None: ...

    async with AsyncExitStack() as stack:
        registry, store, model = MemoryRegistry(), FileStore(folder), model_folder("smollm2")
        await registry.put(await engine_record(stack, SECRET.plane))
        control = ControlServer(SECRET.plane, nothing, nothing, lambda _prefill, _decode: None)
        stack.push_async_callback(control.close)
        publisher = Publisher(
            registry, store, KEYS, ControllerRecord(run="r", host=socket.gethostname(), pid=1), LEASE_S, Random(1)
        )
        stack.push_async_callback(store.close)
        await publisher.begin(f"{HERE}:{await control.start(HERE)}")
        stack.push_async_callback(publisher.end)
        publishing = asyncio.create_task(publisher.run())
        stack.callback(publishing.cancel)
        spec = FrontendSpec(
            registry="",
            control="",
            shared=Shared(FileAt(str(folder)), KEYS),
            host=HERE,
            port=free_port(),
            body_limit_bytes=1 << 20,
            models=(ModelSpec(path=str(model), name="m", digest=text_digest(model)),),
            number=0,
            has_peers=True,
            stop_s=1.0,
            limits=Limits(),
        )
        frontends = Frontends(spec, 1, os.environ | {SECRET_VARIABLE: SECRET.plane.hex()}, registry)
        stack.push_async_callback(frontends.stop)
        yield Scene(folder, registry, frontends, spec)


async def ask(port: int, method: str, path: str, **more: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=f"http://{HERE}:{port}", trust_env=False, timeout=30) as client:
        return await client.request(method, path, **more)


async def until_ready(port: int) -> None:
    async def is_ready() -> bool:
        with suppress(httpx.TransportError):
            return (await ask(port, "GET", "/ready")).status_code == 200
        return False

    async with asyncio.timeout(60):
        while not await is_ready():
            await asyncio.sleep(0.1)


async def until_there(scene: Scene, count: int, limit_s: float) -> None:
    """Of frontends that are not the controller's."""
    async with asyncio.timeout(limit_s):
        while await scene.outside() != count:
            await asyncio.sleep(0.05)


async def numbers(port: int) -> list[int]:
    return [each["number"] for each in (await ask(port, "GET", "/disagg/status")).json()["frontends"]]


async def test_it_serves_the_same_deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (model_folder("smollm2") / "tokenizer.json").exists():
        pytest.skip("disagg model get smollm2")
    monkeypatch.setattr(lone_frontend, "PUBLISHED_S", 0.3)
    async with deployment(tmp_path / "registry") as scene:
        assert "publishes nothing for frontends on other hosts; set security.secret" in await scene.refusal()
        await scene.publish(scene.spec)
        await scene.frontends.start()
        assert "is not the security.secret of deployment prod/chat" in await scene.refusal(TEXT[::-1])
        assert "no deployment chat of namespace test is there" in await scene.refusal(namespace="test")
        assert "cannot be bound here: Address already in use" in await scene.refusal()
        here, there = scene.spec.port, free_port()
        async with scene.elsewhere(there) as process:
            await until_ready(here)
            await until_ready(there)
            await _each_finds_requests_of_the_other(here, there)
            await _it_stays_when_the_others_go(scene, there)
            await _it_heeds_what_is_published_anew(scene, there)
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 20) == 0
            assert await scene.outside() == 0
        async with scene.elsewhere(there) as process:
            await until_there(scene, 1, 60)
            process.kill()
            await until_there(scene, 0, LEASE_S + 12)


async def _each_finds_requests_of_the_other(here: int, there: int) -> None:
    asked = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
    for served_by, asked_at in (there, here), (here, there):
        answer = await ask(served_by, "POST", "/v1/chat/completions", json=asked)
        assert answer.status_code == 200, answer.text
        told = await ask(asked_at, "GET", f"/disagg/requests/{answer.headers['x-request-id']}")
        assert told.json()["id"] == answer.headers["x-request-id"]
    assert (await numbers(here)) == (await numbers(there))
    first, elsewhere = await numbers(here)
    assert (first, elsewhere >= OUTSIDE) == (0, True)
    async with httpx.AsyncClient(base_url=f"http://{HERE}:{there}", trust_env=False, timeout=30) as client:
        body = {"model": "m", "prompt": [7] * 20, "max_tokens": 4000, "stream": True}
        async with client.stream("POST", "/v1/completions", json=body) as stream:
            cancelled = await ask(here, "DELETE", f"/v1/requests/{stream.headers['x-request-id']}")
            assert cancelled.status_code == 200, cancelled.text
            assert "cancelled" in (await stream.aread()).decode()


async def _it_stays_when_the_others_go(scene: Scene, there: int) -> None:
    os.kill(scene.registry.frontends[0].pid, signal.SIGKILL)
    await scene.registry.remove_frontend(0)
    answer = await ask(there, "POST", "/v1/completions", json={"model": "m", "prompt": [7] * 9, "max_tokens": 3})
    assert answer.status_code == 200
    async with asyncio.timeout(10):
        while len(await numbers(there)) > 1:
            await asyncio.sleep(0.05)


async def _it_heeds_what_is_published_anew(scene: Scene, there: int) -> None:
    await scene.publish(replace(scene.spec, api_keys=(KEY,)))
    async with asyncio.timeout(30):
        while True:
            with suppress(httpx.TransportError):
                if (await ask(there, "GET", "/v1/models")).status_code == 401:
                    break
            await asyncio.sleep(0.1)
    opened = await ask(there, "GET", "/v1/models", headers={"authorization": f"Bearer {KEY}"})
    assert opened.status_code == 200
