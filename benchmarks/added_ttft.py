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

from benchmarks.legs import send
from benchmarks.load import chat, drive
from benchmarks.stub_deployment import StubDeployment, stub_deployment
from disagg.models.resolve import resolve_model
from disagg.plane.client import PlaneClient

ROUNDS = 9
REQUESTS = 100  # a round and side
QUESTION = "Explain why Roger Federer is considered one of the greatest tennis players of all time"


async def _through_http(deployment: StubDeployment) -> list[float]:
    request = chat(deployment.url, "stub", QUESTION, 4)
    return [answer.ttft_s * 1e3 for answer in await drive(deployment.url, [request] * REQUESTS, 1)]


async def _over_the_plane(deployment: StubDeployment) -> list[float]:
    clients = [
        PlaneClient(deployment.planes[role], 1, deployment.secret, lambda _why: None) for role in ("prefill", "decode")
    ]
    for client in clients:
        await client.connect()
    times_ms = []
    for number in range(REQUESTS):
        began = time.perf_counter()
        legs = [send(client, number, {"max_new_tokens": 4}) for client in clients]
        times_ms.append((await legs[1].first_s - began) * 1e3)
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
