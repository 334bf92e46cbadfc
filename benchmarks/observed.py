"""What it costs a frontend to be looked at: CPU a token with a page open, metrics scraped and traces at 1 %, over that
without.

    python -m benchmarks.observed [--rounds 9] [--streams 128] [--pace-ms 50] [--control] [--json FILE]

Way:   the same load on two stub deployments at the same time -> CPU of each frontend over its tokens, in each window
In:    answers of TOKENS tokens, which begin and end all the time: traces and counts are made at an end
Out:   the median of the windows' ratios, with the least and the largest. Whatever else the machine does hits both.
       `--control`: nobody looks at either, which tells what a ratio is worth here
Fails: a pace that was not kept is told: tokens are merged then, and cheaper
"""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import repeat
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import uvloop

from benchmarks.load import Answer, chat, drive
from benchmarks.processes import cpu_s
from benchmarks.prompts import Prompts
from benchmarks.stub_deployment import StubDeployment, stub_deployment
from disagg.frontend.spec import TracesSpec
from disagg.models.resolve import resolve_model

WINDOW_S, SCRAPE_S = 10.0, 10.0
TOKENS = 200
PROMPT_TOKENS = 46
SAMPLED = 0.01


@contextmanager
def collector() -> Iterator[str]:
    """Takes spans, and forgets them."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/traces"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def _get(url: str, path: str) -> AsyncIterator[bytes]:
    at = urlsplit(url)
    reader, writer = await asyncio.open_connection(at.hostname, at.port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nhost: {at.netloc}\r\nconnection: close\r\n\r\n".encode())
        while data := await reader.read(1 << 16):
            yield data
    finally:
        writer.close()


async def _read(url: str, path: str) -> int:
    return sum([len(data) async for data in _get(url, path)])


async def _scrape(url: str) -> None:
    while True:
        await asyncio.sleep(SCRAPE_S / 2)
        await _read(url, "/metrics")
        await asyncio.sleep(SCRAPE_S / 2)


@asynccontextmanager
async def looked_at(url: str) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(_read(url, "/disagg/events")), asyncio.create_task(_scrape(url))]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


class Loaded:
    """Streams of one deployment, for as long as the load runs."""

    def __init__(self, deployment: StubDeployment, text: str, streams: int) -> None:
        self.deployment, self._streams = deployment, streams
        self._answers: list[Answer] = []
        request = chat(deployment.url, "stub", text, TOKENS)
        self._driving = asyncio.create_task(drive(deployment.url, repeat(request), streams, sink=self._answers))

    async def runs(self) -> None:
        while len(self._answers) < self._streams or not all(a.first_s for a in self._answers[: self._streams]):
            await asyncio.sleep(0.05)

    @property
    def cpu_s(self) -> float:
        return cpu_s([self.deployment.pids["frontend"]])

    def events_between(self, from_s: float, to_s: float) -> int:
        return sum(answer.events_between(from_s, to_s) for answer in self._answers)

    async def stop(self) -> None:
        self._driving.cancel()
        await asyncio.wait([self._driving])
        errors = [answer.error for answer in self._answers if answer.error]
        assert not errors, errors[0]


async def windows(both: Sequence[Loaded], rounds: int, tokens_due: float) -> AsyncIterator[list[float]]:
    """CPU µs a token of each."""
    for _ in range(rounds):
        before_s, began_s = [each.cpu_s for each in both], time.perf_counter()
        await asyncio.sleep(WINDOW_S)
        spent_s, over_s = [each.cpu_s - s for each, s in zip(both, before_s, strict=True)], time.perf_counter()
        await asyncio.sleep(0.1)  # what came is written down by then
        came = [each.events_between(began_s, over_s) for each in both]
        if (reached := min(came) / tokens_due / (over_s - began_s)) < 0.97:
            print(f"PACE NOT KEPT: {reached:.0%}", flush=True)
        yield [s * 1e6 / tokens for s, tokens in zip(spent_s, came, strict=True)]


async def measure(rounds: int, streams: int, pace_ms: float, *, is_control: bool) -> dict[str, Any]:
    model = Path(resolve_model("smollm2"))
    (text,) = Prompts(model, 0).texts(1, PROMPT_TOKENS)
    found: list[list[float]] = []
    async with AsyncExitStack() as stack:
        endpoint = stack.enter_context(collector())
        traces = TracesSpec(endpoint=endpoint, sample_ratio=SAMPLED, headers={}, service="stub")
        plain = await stack.enter_async_context(stub_deployment(model, pace_ms))
        more = None if is_control else traces
        watched = await stack.enter_async_context(stub_deployment(model, pace_ms, traces=more))
        if not is_control:
            await stack.enter_async_context(looked_at(watched.url))
        both = [Loaded(each, text, streams) for each in (plain, watched)]
        for each in both:
            await each.runs()
        await asyncio.sleep(1)
        async for us in windows(both, rounds, streams * 1e3 / pace_ms):
            found.append(us)
            print(f"{us[0]:.2f} µs a token, looked at {us[1]:.2f}: {us[1] / us[0]:.3f}", flush=True)
        for each in both:
            await each.stop()
    ratios = sorted(watched_us / plain_us for plain_us, watched_us in found)
    return {
        "streams": streams,
        "pace_ms": pace_ms,
        "is_control": is_control,
        "plain_us": median(each for each, _ in found),
        "looked_at_us": median(each for _, each in found),
        "ratio": median(ratios),
        "ratios": ratios,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="windows of 10 s")
    parser.add_argument("--streams", type=int, default=128, help="of each deployment")
    parser.add_argument("--pace-ms", type=float, default=50.0)
    parser.add_argument("--control", action="store_true")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    figures = uvloop.run(measure(arguments.rounds, arguments.streams, arguments.pace_ms, is_control=arguments.control))
    ratios = figures["ratios"]
    print(f"ratio {figures['ratio']:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}, n={len(ratios)})")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
