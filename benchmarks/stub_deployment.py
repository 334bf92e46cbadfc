"""A whole deployment in front of engines that cost nothing: what is measured then is ours alone.

Real frontend process, real plane over loopback, real registry; prefill and decode StubEngines, each in a process of
its own (`python -m benchmarks.stub_deployment STEP_MS IDS CONTEXT FOLDER`), as engine hosts are.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.processes import cpu_s, running, serve, tree
from disagg.cluster.frontend_process import FrontendProcess
from disagg.cluster.ports import free_port
from disagg.coordinator.limits import Limits
from disagg.freed_memory import keep_freed_memory
from disagg.frontend.readers import PROGRAM, READ_S, Order
from disagg.frontend.spec import FrontendSpec, ModelSpec, TracesSpec
from disagg.host_spec import SECRET_VARIABLE, TextSpec
from disagg.plane.server import PlaneServer
from disagg.policy_names import DEFAULT
from disagg.process.stub import FACTS, StubEngine
from disagg.process.text_service import text_service
from disagg.registry.control import ControlServer
from disagg.registry.memory import MemoryRegistry
from disagg.registry.records import EngineRecord, State
from disagg.registry.served import RegistryServer
from disagg.roles import Role
from disagg.tokenizer.overrides import Overrides

HOST_S = 20.0
BLOCK_TOKENS = 64
IDLE_FOR_S, IDLE_SHARE, IDLE_LIMIT_S = 0.5, 0.05, 30.0


@dataclass(frozen=True)
class StubDeployment:
    url: str
    secret: bytes
    planes: dict[str, str]  # role -> host:port, of each role's first engine
    pids: dict[str, int]  # frontend, prefill, decode; prefill-1, decode-1 and so on where there are more
    began_s: float  # time.perf_counter() when the frontend was started


@asynccontextmanager
async def stub_deployment(
    model_path: Path,
    step_ms: float = 0.0,
    engines_a_role: int = 1,
    script: Sequence[int] = (),
    context_tokens: int = FACTS.context_length,
    others: Sequence[tuple[EngineRecord, Sequence[str]]] = (),
    policy: str = DEFAULT,
    traces: TracesSpec | None = None,
    **front: Any,
) -> AsyncIterator[StubDeployment]:
    """By the default policy, which looks at KV blocks, as where the YAML says no more. Its engines tell nothing
    of theirs, so that is guessed.

    `script`: what its engines say, over and over; `context_tokens`: theirs, beside the model's own. `others`: engines
    more that have met nobody, each with the program that serves it and its words. `front`: what else
    the frontend is told of the model (ModelSpec); with tokenization "engine" the engines' processes have the
    tokenizer."""
    secret = secrets.token_bytes(32)
    environment = os.environ | {SECRET_VARIABLE: secret.hex()}
    registry = MemoryRegistry()
    server, control = (
        RegistryServer(registry, secret),
        ControlServer(secret, _no_log, _no_drain, lambda _prefill, _decode: None),
    )
    spec = FrontendSpec(
        registry=f"127.0.0.1:{await server.start('127.0.0.1')}",
        control=f"127.0.0.1:{await control.start('127.0.0.1')}",
        host="127.0.0.1",
        port=free_port(),
        body_limit_bytes=8 << 20,
        models=(ModelSpec(path=str(model_path), name="stub", **({"block_tokens": BLOCK_TOKENS} | front)),),
        policy=policy,
        number=0,
        stop_s=1.0,
        limits=Limits(),
        traces=traces,
    )
    frontend = FrontendProcess(spec, environment)
    numbered = [(role, number) for role in (Role.PREFILL, Role.DECODE) for number in range(engines_a_role)]
    async with AsyncExitStack() as stack:
        stack.push_async_callback(control.close)
        stack.push_async_callback(server.close)
        planes: dict[str, str] = {}
        pids: dict[str, int] = {}
        for role, number in numbered:
            tokenizer = str(model_path) if front.get("tokenization") == "engine" else ""
            words = (str(step_ms), ",".join(map(str, script)), str(context_tokens), tokenizer)
            host = running("benchmarks.stub_deployment", *words, limit_s=HOST_S, environment=environment)
            pid, port = await stack.enter_async_context(host)
            plane = f"127.0.0.1:{port}"
            planes.setdefault(str(role), plane)
            pids[f"{role}-{number}" if number else str(role)] = pid
            is_prefill = role is Role.PREFILL
            for other in range(engines_a_role) if not is_prefill else ():
                await registry.add_met(f"prefill-{other}#1", f"decode-{number}#1")
            await registry.put(
                EngineRecord(
                    id=f"{role}-{number}",
                    role=role,
                    state=State.READY,
                    incarnation=1,
                    plane=plane,
                    bootstrap=f"127.0.0.1:{9 + number}" if is_prefill else "",
                )
            )
        for record, (module, *words) in others:
            pid, port = await stack.enter_async_context(
                running(module, *words, limit_s=HOST_S, environment=environment)
            )
            pids[record.id] = pid
            await registry.put(msgspec.structs.replace(record, plane=f"127.0.0.1:{port}"))
        stack.push_async_callback(frontend.stop)
        began_s = time.perf_counter()
        await frontend.start()
        pids["frontend"] = frontend.pid
        await _until_idle(frontend.pid)
        yield StubDeployment(f"http://127.0.0.1:{spec.port}", secret, planes, pids, began_s)


async def _until_idle(pid: int) -> None:
    """The frontend's reader of long bodies takes a second to start; what is measured meanwhile would be its imports."""
    async with asyncio.timeout(IDLE_LIMIT_S):
        while True:
            pids = tree(pid)
            before_s = cpu_s(pids)
            await asyncio.sleep(IDLE_FOR_S)
            if cpu_s(pids) - before_s <= IDLE_FOR_S * IDLE_SHARE:
                return


async def _no_log(_engine_id: str, _lines: int) -> str | None:
    return None


async def _no_drain(_engine_id: str, _restart: bool) -> str | None:
    return "nobody drains a stub"


async def _serve(step_ms: float, script: list[int], context_tokens: int, folder: str) -> None:
    """`folder`: of the tokenizer that its process has; empty for none."""
    keep_freed_memory()  # as an engine's host
    facts = msgspec.structs.replace(FACTS, context_length=context_tokens, request_tokens_max=context_tokens)
    texts = await text_service(TextSpec(folder, PROGRAM, _order(folder))) if folder else None
    engine = StubEngine(step_s=step_ms / 1e3, script=script, facts=facts)
    server = PlaneServer(engine, facts, 1, bytes.fromhex(os.environ[SECRET_VARIABLE]), texts=texts)
    await serve(await server.start("127.0.0.1"))


def _order(folder: str) -> bytes:
    return msgspec.msgpack.encode(Order(folder, "stub", READ_S, Overrides(), refuses_unknown=False, is_host=True))


if __name__ == "__main__":
    import uvloop

    step, ids, context, model = sys.argv[1:]
    uvloop.run(_serve(float(step), [int(word) for word in ids.split(",") if word], int(context), model))
