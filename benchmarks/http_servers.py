"""What a streamed SSE chunk costs in the HTTP servers a Python frontend could stand on.

Way:  a driver process reads N streams at once from one server process at a time, over loopback
Out:  one table: CPU microseconds of the server per chunk, chunks a second, first-byte behaviour. Medians over rounds
      in which the servers take turns, so a drift of the machine hits all of them

Run:  python benchmarks/http_servers.py        (under three minutes; `--only uvicorn,aiohttp --rounds 5` to look closer)
The application is the same everywhere: headers, then a chunk of 200 bytes each time the event loop comes round, as
when an engine step hands every stream its delta; paced cells wait between chunks, as an engine would.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import uvloop

CHUNK = (
    b'data: {"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion.chunk","created":1764000000,'
)
CHUNK += b'"model":"m","choices":[{"index":0,"delta":{"content":" token"},"finish_reason":null}]}'
CHUNK += b"\n\n"
DONE = b"data: [DONE]\n\n"
HEADERS = {"content-type": "text/event-stream", "cache-control": "no-cache"}
SERVERS = ("protocol", "uvicorn", "aiohttp", "granian", "starlette", "fastapi")
CELLS = {  # concurrent streams, chunks a stream, milliseconds between a stream's chunks
    "1 stream": (1, 60_000, 0),
    "64 streams": (64, 1_200, 0),
    "256 streams": (256, 300, 0),
    "64 streams, 10 ms": (64, 120, 10),
}

Send = Callable[[dict[str, Any]], Awaitable[None]]


# --- one application, written for each server -------------------------------------------------------------------------


async def asgi(scope: dict[str, Any], receive: Callable[[], Awaitable[dict[str, Any]]], send: Send) -> None:
    if scope["type"] == "lifespan":
        for _ in range(2):
            await send({"type": (await receive())["type"] + ".complete"})
        return
    headers = [(key.encode(), value.encode()) for key, value in HEADERS.items()]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    gap_ms, count = map(int, scope["path"].split("/")[2:])
    for _ in range(count):
        await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
        await asyncio.sleep(gap_ms / 1e3)
    await send({"type": "http.response.body", "body": DONE, "more_body": False})


async def events(gap_ms: int, count: int) -> Any:
    for _ in range(count):
        yield CHUNK
        await asyncio.sleep(gap_ms / 1e3)
    yield DONE


def starlette_app() -> Any:
    from starlette.applications import Starlette
    from starlette.responses import StreamingResponse
    from starlette.routing import Route

    async def stream(request: Any) -> Any:
        return StreamingResponse(
            events(*(int(request.path_params[key]) for key in ("gap_ms", "count"))), headers=HEADERS
        )

    return Starlette(routes=[Route("/stream/{gap_ms}/{count}", stream)])


def fastapi_app() -> Any:
    from fastapi import FastAPI
    from fastapi.responses import StreamingResponse

    app = FastAPI()

    @app.get("/stream/{gap_ms}/{count}")
    async def stream(gap_ms: int, count: int) -> Any:
        return StreamingResponse(events(gap_ms, count), headers=HEADERS)

    return app


class Bare(asyncio.Protocol):
    """The floor: no parser, no routing, chunked framing by hand."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        gap_ms, count = map(int, data.split(b" ", 2)[1].split(b"/")[2:])
        self.task = asyncio.get_running_loop().create_task(self.stream(gap_ms, count))

    async def stream(self, gap_ms: int, count: int) -> None:
        head = b"".join(f"{key}: {value}\r\n".encode() for key, value in HEADERS.items())
        self.transport.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n" + head + b"\r\n")
        for _ in range(count):
            self.transport.write(b"%x\r\n%b\r\n" % (len(CHUNK), CHUNK))
            await asyncio.sleep(gap_ms / 1e3)
        self.transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(DONE), DONE))


async def serve_protocol(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Bare, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


async def serve_aiohttp(port: int) -> None:
    from aiohttp import web

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=HEADERS)
        await response.prepare(request)
        async for chunk in events(*(int(request.match_info[key]) for key in ("gap_ms", "count"))):
            await response.write(chunk)
        await response.write_eof()
        return response

    app = web.Application()
    app.router.add_get("/stream/{gap_ms}/{count}", stream)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=2048).start()
    await asyncio.Event().wait()


def serve(name: str, port: int) -> None:
    if name in ("protocol", "aiohttp"):
        uvloop.run(serve_protocol(port) if name == "protocol" else serve_aiohttp(port))
    elif name == "granian":
        from granian import Granian

        options: dict[str, Any] = {"interface": "asgi", "loop": "uvloop", "log_access": False, "log_enabled": False}
        os.environ["PYTHONPATH"] = str(Path(__file__).parent)
        sys.path.insert(0, str(Path(__file__).parent))
        Granian("http_servers:asgi", address="127.0.0.1", port=port, **options).serve()
    else:
        import uvicorn

        app = {"uvicorn": lambda: asgi, "starlette": starlette_app, "fastapi": fastapi_app}[name]()
        uvicorn.run(app, port=port, loop="uvloop", http="httptools", log_level="error", access_log=False)


# --- the driver -------------------------------------------------------------------------------------------------------


class Reader(asyncio.Protocol):
    """Counts nothing but the end: the driver must be cheaper than what it measures."""

    def __init__(self, path: str, ended: asyncio.Future[None]) -> None:
        self.request = f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode()
        self.ended, self.tail = ended, b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        tail = self.tail + data[-64:] if len(data) < 64 else data[-64:]
        self.tail = tail[-64:]
        if DONE in tail and tail.endswith(b"0\r\n\r\n"):
            self.transport.close()
            self.ended.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_exception(error or ConnectionError("server closed before the end of the stream"))


async def read_streams(port: int, concurrency: int, chunks: int, gap_ms: int) -> None:
    loop = asyncio.get_running_loop()
    ends: list[asyncio.Future[None]] = [loop.create_future() for _ in range(concurrency)]
    for end in ends:
        await loop.create_connection(lambda end=end: Reader(f"/stream/{gap_ms}/{chunks}", end), "127.0.0.1", port)  # type: ignore[misc]
    await asyncio.wait_for(asyncio.gather(*ends), 60)


@dataclass(slots=True)
class Sample:
    cpu_us_per_chunk: float
    chunks_per_s: float


def measure(process: psutil.Process, port: int, cell: str) -> Sample:
    concurrency, chunks, gap_ms = CELLS[cell]
    cpu_s, at_s = tree_cpu_s(process), time.perf_counter()
    uvloop.run(read_streams(port, concurrency, chunks, gap_ms))
    wall_s, total = time.perf_counter() - at_s, chunks * concurrency
    return Sample((tree_cpu_s(process) - cpu_s) * 1e6 / total, total / wall_s)


def tree_cpu_s(process: psutil.Process) -> float:
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))


def first_bytes(port: int, tries: int = 50) -> str:
    """Does the first segment hold headers and first event, and is a second request on the connection answered?"""
    together, waits_ms = 0, []
    with socket.create_connection(("127.0.0.1", port), timeout=5) as peer:
        for _ in range(tries):
            at_s = time.perf_counter()
            peer.sendall(b"GET /stream/0/1 HTTP/1.1\r\nhost: x\r\n\r\n")
            data = first = peer.recv(65536)
            while CHUNK not in data:
                data += peer.recv(65536)
            waits_ms.append((time.perf_counter() - at_s) * 1e3)
            while not data.endswith(b"0\r\n\r\n"):
                data += peer.recv(65536)
            together += CHUNK in first
    return f"{together}/{tries}, {median(waits_ms):.2f} ms"


def held_mb(process: psutil.Process, port: int) -> float:
    """Memory the server gains in a second for one client that asks and does not read."""
    processes = (process, *process.children(recursive=True))
    before = sum(each.memory_info().rss for each in processes)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as peer:
        peer.sendall(b"GET /stream/0/100000 HTTP/1.1\r\nhost: x\r\n\r\n")
        time.sleep(1)
        return float(sum(each.memory_info().rss for each in processes) - before) / 1e6


def start(name: str) -> tuple[subprocess.Popen[bytes], int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    child = subprocess.Popen([sys.executable, __file__, "--serve", name, "--port", str(port)])
    deadline_s = time.monotonic() + 15
    while time.monotonic() < deadline_s:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return child, port
        except OSError:
            time.sleep(0.05)
    child.kill()
    raise SystemExit(f"{name} did not start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", choices=SERVERS)
    parser.add_argument("--port", type=int)
    parser.add_argument("--only", default=",".join(SERVERS))
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.port)
        return
    names = options.only.split(",")
    running = {name: start(name) for name in names}
    try:
        samples: dict[tuple[str, str], list[Sample]] = {}
        first = {name: first_bytes(running[name][1]) for name in names}
        for round_index in range(options.rounds + 1):  # the first warms up
            for cell in CELLS:
                for name in names if round_index % 2 else reversed(names):
                    child, port = running[name]
                    sample = measure(psutil.Process(child.pid), port, cell)
                    if round_index:
                        samples.setdefault((name, cell), []).append(sample)
        held = {name: held_mb(psutil.Process(child.pid), port) for name, (child, port) in running.items()}
    finally:
        for child, _ in running.values():
            child.terminate()
        for child, _ in running.values():
            child.wait(10)
    report(names, samples, first, held)


def report(
    names: list[str], samples: dict[tuple[str, str], list[Sample]], first: dict[str, str], held: dict[str, float]
) -> None:
    """One table: CPU us a chunk (least..most over the rounds) and thousands of chunks a second in each cell."""
    print(f"{'':10}" + "".join(f"{cell:>32}" for cell in CELLS) + f"{'one segment, wait':>20}{'MB held':>9}")
    for name in names:
        line = f"{name:10}"
        for cell in CELLS:
            cpu_us = sorted(each.cpu_us_per_chunk for each in samples[name, cell])
            rate = median(each.chunks_per_s for each in samples[name, cell]) / 1e3
            line += f"{f'{median(cpu_us):.1f} ({cpu_us[0]:.1f}..{cpu_us[-1]:.1f}) us {rate:4.0f} k/s':>32}"
        print(f"{line}{first[name]:>20}{held[name]:>9.1f}")


if __name__ == "__main__":
    main()
