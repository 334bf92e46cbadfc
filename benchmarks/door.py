"""What hostile connections cost a frontend before any key: memory, and how long everybody else waits meanwhile.

Way:   a GET /health each 5 ms -> one kind of hostile connections -> the longest answer meanwhile, memory, who is left
Out:   a line for each kind

Run:   python -m benchmarks.door [--against CHECKOUT]   (a minute; with --against, another checkout's frontend too)
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import uvloop

from benchmarks.stub_deployment import stub_deployment
from disagg.models.resolve import resolve_model

HEAD_MB, HALF_HEADS, BODIES, BODY_BYTES = 200, 10_000, 120, (8 << 20) - 1
HALF_HEAD_S = 20.0
PIECE = b"y" * 65536
HEALTH = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def endless_head(port: int) -> str:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    sent_mb = 0.0
    with contextlib.suppress(ConnectionError):
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nX: ")
        while sent_mb < HEAD_MB:
            writer.write(PIECE)
            await asyncio.wait_for(writer.drain(), 30)
            sent_mb += len(PIECE) / 1e6
    writer.close()
    return f"{sent_mb:.0f} of {HEAD_MB} MB taken in or thrown away"


async def half_heads(port: int) -> str:
    opened: list[Streams] = []
    with contextlib.suppress(OSError):
        for _ in range(HALF_HEADS):
            opened.append(await asyncio.open_connection("127.0.0.1", port))
            opened[-1][1].write(b"GET / HTTP/1.1\r\nHost: a\r\n")
    await asyncio.sleep(HALF_HEAD_S)
    left = sum(reader.exception() is None and not _has_ended(reader) for reader, _ in opened)
    for _, writer in opened:
        writer.close()
    return f"{len(opened)} opened, {left} left after {HALF_HEAD_S:.0f} s"


def _has_ended(reader: asyncio.StreamReader) -> bool:
    return bool(reader._eof)  # type: ignore[attr-defined] # at_eof() is false while an unread answer is there


async def unfinished_bodies(port: int) -> str:
    opened: list[Streams] = []
    for _ in range(BODIES):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        opened.append((reader, writer))
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (BODY_BYTES + 1))
        with contextlib.suppress(ConnectionError):
            for _ in range(BODY_BYTES // len(PIECE)):
                writer.write(PIECE)
                await writer.drain()
    await asyncio.sleep(0.5)
    refused = 0
    for reader, writer in opened:
        with contextlib.suppress(TimeoutError, ConnectionError):
            refused += b" 503 " in await asyncio.wait_for(reader.readline(), 0.01)
        writer.close()
    return f"{refused} of {BODIES} refused with 503"


KINDS: dict[str, Callable[[int], Awaitable[str]]] = {
    f"a head of {HEAD_MB} MB": endless_head,
    f"{HALF_HEADS} half heads": half_heads,
    f"{BODIES} unfinished bodies of 8 MB": unfinished_bodies,
}


@asynccontextmanager
async def probing(port: int) -> AsyncIterator[list[float]]:
    """Milliseconds that GET /health took, one after the other."""
    took_ms: list[float] = []
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def probe() -> None:
        while True:
            began_s = time.perf_counter()
            writer.write(HEALTH)
            await reader.readuntil(b"}")
            took_ms.append((time.perf_counter() - began_s) * 1e3)
            await asyncio.sleep(0.005)

    task = asyncio.create_task(probe())
    try:
        yield took_ms
    finally:
        task.cancel()
        await asyncio.wait([task])
        writer.close()


def memory_mb(pid: int, what: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


async def measure() -> None:
    for kind, attack in KINDS.items():
        async with stub_deployment(Path(resolve_model("smollm2"))) as deployment:
            pid, port = deployment.pids["frontend"], int(deployment.url.rpartition(":")[2])
            before_mb = memory_mb(pid, "VmRSS")
            async with probing(port) as took_ms:
                outcome = await attack(port)
            grew_mb = memory_mb(pid, "VmHWM") - before_mb
            print(
                f"{kind:<32} longest /health {max(took_ms):7.0f} ms, memory +{grew_mb:4.0f} MB; {outcome}", flush=True
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout of this repository")
    against: Path | None = parser.parse_args().against
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    uvloop.run(measure())
    if against is not None:
        print(f"{against}:", flush=True)
        environment = os.environ | {"PYTHONPATH": str(against.resolve()), "PYTHONSAFEPATH": "1"}
        subprocess.run([sys.executable, __file__], env=environment, timeout=600, check=True)


if __name__ == "__main__":
    main()
