"""The token path: no Ray, and system calls that grow with frames, not with tokens."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import aiohttp
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.stub_deployment import StubDeployment, stub_deployment
from disagg.models.resolve import resolve_model

STREAMS, TOKENS = 16, 1000


def _calls(pid: int) -> int:
    """Read and write system calls so far."""
    rows = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(rows["syscr"]) + int(rows["syscw"])


async def _stream(session: aiohttp.ClientSession, deployment: StubDeployment) -> int:
    body = {"model": "stub", "prompt": [1, 2, 3], "max_tokens": TOKENS, "stream": True, "ignore_eos": True}
    chunks = 0
    async with session.post(f"{deployment.url}/v1/completions", json=body) as answer:
        assert answer.status == 200, await answer.text()
        async for line in answer.content:
            chunks += line.startswith(b"data: {")
    return chunks


@pytest.mark.engine
async def test_system_calls_and_ray_calls_of_16_streams_of_1000_tokens() -> None:
    async with (
        stub_deployment(resolve_model("smollm2"), step_ms=1, policy="least_loaded") as deployment,
        aiohttp.ClientSession() as session,
    ):
        await _stream(session, deployment)
        before = {name: _calls(pid) for name, pid in deployment.pids.items()}
        chunks = sum(await asyncio.gather(*(_stream(session, deployment) for _ in range(STREAMS))))
        used = {name: _calls(pid) - before[name] for name, pid in deployment.pids.items()}
        assert chunks >= STREAMS
        # The host writes one frame a step for all streams: some 1000 steps, and libuv may wake itself for each.
        assert used["decode"] < 4 * TOKENS, used
        # The frontend reads a frame and writes once a stream and step at most; twice that bounds its wake-ups too.
        assert used["frontend"] < 2 * STREAMS * TOKENS, used
        # Ray cannot be called by a process that never loaded it.
        for name in ("frontend", "decode"):
            assert "_raylet" not in Path(f"/proc/{deployment.pids[name]}/maps").read_text()
