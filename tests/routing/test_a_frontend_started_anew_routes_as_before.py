"""A frontend's process is killed; the next one knows what every rank has, and sends each prompt where it went before.

Real: the frontend's process, its sockets, the registry's, and the request plane. Engines are simulated, in real time.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from contextlib import AsyncExitStack

import httpx
import pytest

from disagg.cluster.frontend_process import FrontendProcess
from disagg.cluster.ports import free_port
from disagg.coordinator.limits import Limits
from disagg.frontend.spec import FrontendSpec, ModelSpec
from disagg.host_spec import SECRET_VARIABLE
from disagg.kv_events.book import KvBook
from disagg.models.catalogue import model_folder
from disagg.plane.server import PlaneServer
from disagg.registry.control import ControlServer
from disagg.registry.memory import MemoryRegistry
from disagg.registry.records import EngineRecord, State
from disagg.registry.served import RegistryServer
from disagg.roles import Role
from disagg.simulated_engine.engine import SimulatedEngine
from disagg.simulated_engine.model import Model

SECRET = b"s" * 32
BLOCK, PROMPT_TOKENS, PROMPTS = 64, 640, 12
AGAIN_S = 20.0  # within 1 s on a machine that is not busy


async def test_each_prompt_goes_where_it_went_before(capsys: pytest.CaptureFixture[str]) -> None:
    if not (model_folder("smollm2") / "tokenizer.json").exists():
        pytest.skip("disagg model get smollm2")
    async with AsyncExitStack() as stack:
        registry = MemoryRegistry()
        for engine_id in ("prefill-0", "prefill-1", "decode-0"):
            await registry.put(await _engine(engine_id, stack))
        for number in range(2):
            await registry.add_met(f"prefill-{number}#1", "decode-0#1")
        frontend, url = await _frontend(registry, stack)
        prompts = [[1000 + number] * PROMPT_TOKENS for number in range(PROMPTS)]
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as client:
            await _until_known(client, 0)
            for prompt in prompts:
                await _read_on(client, prompt)
            blocks = await _until_known(client, PROMPTS * (PROMPT_TOKENS // BLOCK))
            before = [await _read_on(client, prompt) for prompt in prompts]
            assert all(believed >= PROMPT_TOKENS - BLOCK for _, believed in before), before
            assert len({where for where, _ in before}) == 2
        os.kill(frontend.pid, signal.SIGKILL)
        began_s = time.monotonic()
        await frontend.start()
        listens_s = time.monotonic()
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as client:
            await _until_known(client, blocks)
            knows_s = time.monotonic()
            assert [await _read_on(client, prompt) for prompt in prompts] == before
    with capsys.disabled():
        print(f"\nlistens {listens_s - began_s:.2f} s after its start, knows all {knows_s - listens_s:.2f} s later")
    assert knows_s - listens_s < AGAIN_S


async def _engine(engine_id: str, stack: AsyncExitStack) -> EngineRecord:
    role = Role(engine_id.partition("-")[0])
    at = ("127.0.0.1", free_port()) if role is Role.PREFILL else None
    kv = KvBook(SECRET, BLOCK)
    engine = SimulatedEngine(Model(role=role, speed=20), life=f"{engine_id}#1", bootstrap=at, kv=kv)
    facts = engine.start()
    server = PlaneServer(engine, facts, 1, SECRET, kv=kv)
    plane = f"127.0.0.1:{await server.start('127.0.0.1')}"
    stack.callback(engine.stop)
    stack.callback(server.close)
    await engine.open()
    return EngineRecord(
        id=engine_id,
        role=role,
        state=State.READY,
        incarnation=1,
        plane=plane,
        bootstrap=f"{at[0]}:{at[1]}" if at else "",
        ranks=facts.ranks,
        kv_tokens=facts.kv_tokens,
        requests_max=facts.requests_max,
        request_tokens_max=facts.request_tokens_max,
        page_size=facts.page_size,
        context_length=facts.context_length,
        caches_prompts=facts.caches_prompts,
    )


async def _frontend(registry: MemoryRegistry, stack: AsyncExitStack) -> tuple[FrontendProcess, str]:
    async def nothing(*_: object) -> None: ...

    server = RegistryServer(registry, SECRET)
    control = ControlServer(SECRET, nothing, nothing, lambda _prefill, _decode: None)
    spec = FrontendSpec(
        registry=f"127.0.0.1:{await server.start('127.0.0.1')}",
        control=f"127.0.0.1:{await control.start('127.0.0.1')}",
        host="127.0.0.1",
        port=free_port(),
        body_limit_bytes=1 << 20,
        models=(ModelSpec(path=str(model_folder("smollm2")), name="m", block_tokens=BLOCK),),
        number=0,
        stop_s=1.0,
        limits=Limits(),
        open_metrics=True,
    )
    stack.push_async_callback(control.close)
    stack.push_async_callback(server.close)
    frontend = FrontendProcess(spec, os.environ | {SECRET_VARIABLE: SECRET.hex()})
    stack.push_async_callback(frontend.stop)
    await frontend.start()
    return frontend, f"http://127.0.0.1:{spec.port}"


async def _until_known(client: httpx.AsyncClient, blocks: int) -> int:
    """Until the frontend is told by both prefill engines, and knows of so many blocks of theirs."""
    async with asyncio.timeout(AGAIN_S):
        while True:
            said = (await client.get("/metrics")).text
            told = re.findall(r'disagg_cached_blocks_known{[^}]*"prefill[^}]*} 1', said)
            known = sum(float(n) for n in re.findall(r'disagg_cached_blocks{[^}]*"prefill[^}]*} (\S+)', said))
            if len(told) == 2 and known >= blocks:
                return int(known)
            await asyncio.sleep(0.02)


async def _read_on(client: httpx.AsyncClient, prompt: list[int]) -> tuple[str, int]:
    """(where the prompt was read, how much of it was believed to be there)."""
    answer = await client.post("/v1/completions", json={"model": "m", "prompt": prompt, "max_tokens": 2})
    assert answer.status_code == 200, answer.text
    timeline = (await client.get(f"/disagg/requests/{answer.headers['x-request-id']}")).json()
    return timeline["prefill"], timeline["routed"]["cached_tokens"]
