"""TTFT that frontend, coordinator and plane add at concurrency 1, before engines that cost nothing.

One run, alternating: (a) POST /v1/chat/completions with a 46-token prompt, stream, first content byte; (b) the same
two legs sent by a bare PlaneClient. (a) is all we add; (a) - (b) is HTTP, parsing, template, tokeniser and coordinator.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import time
from pathlib import Path
from statistics import median, quantiles

import uvloop

from benchmarks.stub_deployment import StubDeployment, stub_deployment
from disagg.models.resolve import resolve_model
from disagg.plane import messages as m
from disagg.plane.client import PlaneClient

ROUNDS = 9
REQUESTS = 100  # a round and side
QUESTION = "Explain why Roger Federer is considered one of the greatest tennis players of all time"


class _First:
    """Tells when the first token came."""

    def __init__(self) -> None:
        self.came: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def on_tokens(self, _offset: int, _token_ids: list[int]) -> None:
        if not self.came.done():
            self.came.set_result(time.perf_counter())

    def on_stage(self, _name: str) -> None:
        pass

    def on_end(self, _end: m.LegEnd) -> None:
        pass


async def _through_http(deployment: StubDeployment) -> list[float]:
    host, port = deployment.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = {"model": "stub", "messages": [{"role": "user", "content": QUESTION}], "stream": True, "max_tokens": 4}
    payload = json.dumps(body).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
    )
    times_ms = []
    for _ in range(REQUESTS):
        began = time.perf_counter()
        writer.write(head.encode() + payload)
        seen, first = b"", None
        while not seen.endswith(b"0\r\n\r\n"):
            seen += await reader.read(1 << 16)
            if first is None and b'"content":"' in seen.replace(b'"content":""', b""):
                first = time.perf_counter()
        assert first is not None, seen
        times_ms.append((first - began) * 1e3)
    writer.close()
    return times_ms


async def _over_the_plane(deployment: StubDeployment) -> list[float]:
    clients = [
        PlaneClient(deployment.planes[role], 1, deployment.secret, lambda _why: None) for role in ("prefill", "decode")
    ]
    for client in clients:
        await client.connect()
    prompt = m.pack_ids(range(46))
    times_ms = []
    for _ in range(REQUESTS):
        began, receivers = time.perf_counter(), [_First(), _First()]
        for client, receiver in zip(clients, receivers, strict=True):
            client.submit(
                receiver, leg_id="0" * 32, prompt=prompt, sampling={"max_new_tokens": 4}, dp_rank=0, bootstrap=None
            )
        times_ms.append((await receivers[1].came - began) * 1e3)
        await asyncio.sleep(0.001)
    for client in clients:
        client.close()
    return times_ms


async def measure() -> dict[str, float]:
    """Milliseconds."""
    rows: list[tuple[float, float]] = []
    every: list[float] = []
    async with stub_deployment(Path(resolve_model("smollm2"))) as deployment:
        await _through_http(deployment)
        await _over_the_plane(deployment)
        for number in range(ROUNDS):
            sides = (_through_http, _over_the_plane) if number % 2 else (_over_the_plane, _through_http)
            got = {side: await side(deployment) for side in sides}
            every += got[_through_http]
            rows.append((median(got[_through_http]), median(got[_over_the_plane])))
    whole, plane = (median(column) for column in zip(*rows, strict=True))
    p99 = quantiles(every, n=100)[98]
    medians = [row[0] for row in rows]
    return {"p50": whole, "p50_lowest": min(medians), "p50_highest": max(medians), "p99": p99, "plane_p50": plane}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    ms = uvloop.run(measure())
    print(
        f"added TTFT, concurrency 1: p50 {ms['p50']:.2f} ms (rounds {ms['p50_lowest']:.2f}..{ms['p50_highest']:.2f}), "
        f"p99 {ms['p99']:.2f} ms; of it plane and stub {ms['plane_p50']:.2f} ms  [{ROUNDS} rounds x {REQUESTS}, "
        f"{platform.machine()}, {platform.python_version()}]"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(ms, indent=1) + "\n")


if __name__ == "__main__":
    main()
