"""Ours and its peers, each in front of two prefill and two decode workers that cost little, ready to be driven.

Way:   measure -> [running(NAME, STEP_MS)] -> worker processes, then the frontend, then its first answer
Owns:  the processes: all have ended when the context has, whichever way it ends
Fails: NotReady with the last line of the frontend's log
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks import processes
from benchmarks.load import chat, drive
from benchmarks.peers.fake_worker import MODEL
from benchmarks.stub_deployment import stub_deployment
from disagg.cluster.ports import free_port

WORKERS_A_ROLE = 2
READY_S = 60.0
STOP_S = 3.0


@dataclass(frozen=True, slots=True)
class About:
    title: str
    does: str
    environment: str  # the requirements it is installed from; "" for ours
    knobs: tuple[str, ...] = ()


OURS = "ours"
FLOOR = "worker"
KNOWN = {
    OURS: About("ours", "tokenises; before StubEngines over its own plane", ""),
    "sglang-router": About("sglang-router", "does not tokenise; before HTTP workers", "sglang-router"),
    "smg": About("smg", "does not tokenise; before HTTP workers", "smg"),
    "dynamo": About("Dynamo", "tokenises; before its own mocker (file discovery, TCP planes)", "dynamo"),
    "dynamo-fastokens": About(
        "Dynamo fastokens", "as Dynamo, with its faster tokenizer", "dynamo", ("--tokenizer", "fastokens")
    ),
    FLOOR: About("worker alone", "no frontend: one HTTP worker, driven directly; what driver and worker can do", ""),
}


@dataclass(frozen=True, slots=True)
class Deployment:
    name: str
    url: str
    model: str
    frontend_pid: int  # 0: there is none
    ready_s: float  # from the frontend's start to its first answer

    def chat(self, text: str, tokens: int) -> bytes:
        return chat(self.url, self.model, text, tokens)


class NotReady(Exception):
    """Its text is for the table."""


@asynccontextmanager
async def running(
    name: str, step_ms: float, python: Path, model_path: Path, scratch: Path
) -> AsyncIterator[Deployment]:
    if name == OURS:
        async with stub_deployment(model_path, step_ms, WORKERS_A_ROLE) as ours:
            ready_s = await _first_answer(ours.url, "stub", ours.began_s)
            yield Deployment(name, ours.url, "stub", ours.pids["frontend"], ready_s)
        return
    async with AsyncExitStack() as stack:
        start = _Starter(stack, scratch)
        if name == FLOOR:
            url, began_s, pid = await start.worker("decode", step_ms), time.perf_counter(), 0
        else:
            port = free_port()
            url = f"http://127.0.0.1:{port}"
            if KNOWN[name].environment == "dynamo":
                command = await _dynamo(start, python, port, step_ms, model_path)
                command += KNOWN[name].knobs
            else:
                command = await _router(start, name, python, port, step_ms)
            began_s = time.perf_counter()
            pid = (await start.process(name, command)).pid
        try:
            ready_s = await _first_answer(url, MODEL, began_s)
        except NotReady as error:
            raise NotReady(f"{error}; its log ends: {start.last_words(name)}") from None
        yield Deployment(name, url, MODEL, pid, ready_s)


class _Starter:
    """Starts processes that end with the stack."""

    def __init__(self, stack: AsyncExitStack, scratch: Path) -> None:
        self._stack, self.scratch = stack, scratch
        self.environment = os.environ | {"HOME": str(scratch), "TMPDIR": str(scratch), "HF_HUB_OFFLINE": "1"}

    async def process(self, name: str, command: list[str]) -> asyncio.subprocess.Process:
        with (self.scratch / f"{name}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                cwd=self.scratch,
                start_new_session=True,
            )
        self._stack.push_async_callback(_end, process)
        return process

    async def worker(self, role: str, step_ms: float) -> str:
        worker = processes.running("benchmarks.peers.fake_worker", role, str(step_ms), limit_s=READY_S)
        _, port = await self._stack.enter_async_context(worker)
        return f"http://127.0.0.1:{port}"

    def last_words(self, name: str) -> str:
        lines = (self.scratch / f"{name}.log").read_text(errors="replace").splitlines()
        return next((line[-200:] for line in reversed(lines) if line.strip()), "(empty)")


async def _end(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    await processes.end_within(process, STOP_S)


async def _router(start: _Starter, name: str, python: Path, port: int, step_ms: float) -> list[str]:
    """Both routers come from one code base: their launchers take the same words."""
    module = {"sglang-router": "sglang_router", "smg": "smg"}[name]
    command = [str(python), "-m", f"{module}.launch_router", "--pd-disaggregation", "--policy", "round_robin"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]
    command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
    for _ in range(WORKERS_A_ROLE):
        command += ["--prefill", await start.worker("prefill", step_ms), str(free_port())]
        command += ["--decode", await start.worker("decode", step_ms)]
    return command


async def _dynamo(start: _Starter, python: Path, port: int, step_ms: float, model_path: Path) -> list[str]:
    """One mocker process a role, with two workers each; a decode step takes `step_ms`, prefill and KV take nothing."""
    start.environment |= {
        "DYN_DISCOVERY_BACKEND": "file",
        "DYN_FILE_KV": str(start.scratch / "discovery"),
        "DYN_LOG": "error",  # a line a request and leg stays: no filter of its reaches that
        "DYN_NAMESPACE": "peers",
        "DYN_TCP_RPC_HOST": "127.0.0.1",
        "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
        "DYN_HTTP_RPC_HOST": "127.0.0.1",
    }
    for role in ("prefill", "decode"):
        engine = {
            "worker_type": role,
            "num_gpu_blocks": 1 << 20,
            "block_size": 64,
            "max_num_seqs": 4096,
            "max_num_batched_tokens": 1 << 20,
            "enable_prefix_caching": False,
            "kv_transfer_bandwidth": 0,
            "speedup_ratio": 1.0 if step_ms else 0.0,  # 0: no simulated delay at all
            "timing_model": {"type": "fixed", "prefill_ms": 0, "decode_ms": step_ms},
        }
        arguments = start.scratch / f"{role}.json"
        arguments.write_text(json.dumps({"engine": engine}))
        command = [str(python), "-m", "dynamo.mocker", "--model-path", str(model_path), "--model-name", MODEL]
        command += ["--disaggregation-mode", role, "--extra-engine-args", str(arguments)]
        command += ["--num-workers", str(WORKERS_A_ROLE), "--kv-bytes-per-token", "1"]
        if role == "prefill":
            command += ["--bootstrap-ports", ",".join(str(free_port()) for _ in range(WORKERS_A_ROLE))]
        await start.process(f"mocker-{role}", command)
    await _registered(start.scratch / "discovery", 2 * WORKERS_A_ROLE)
    command = [str(python), "-m", "dynamo.frontend", "--router-mode", "round-robin"]
    return [*command, "--http-host", "127.0.0.1", "--http-port", str(port)]


async def _registered(discovery: Path, workers: int) -> None:
    deadline_s = time.monotonic() + READY_S
    while len(list(discovery.glob("v1/mdc/*"))) < workers:
        if time.monotonic() > deadline_s:
            raise NotReady(f"its mockers did not register within {READY_S:g} s")
        await asyncio.sleep(0.05)


async def _first_answer(url: str, model: str, began_s: float) -> float:
    """Seconds since `began_s` once a chat is answered."""
    host, port = url.removeprefix("http://").split(":")
    while time.perf_counter() < began_s + READY_S:
        with suppress(OSError):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.close()
            answer = (await drive(url, [chat(url, model, "ready?", 1)], 1, limit_s=READY_S))[0]
            if not answer.error:
                return answer.ended_s - began_s
        await asyncio.sleep(0.02)
    raise NotReady(f"no answer within {READY_S:g} s")
