"""What attacks on a deployment cost it: memory before, at its most and after; and how long GET /health takes meanwhile.

Way:   a GET /health each 5 ms -> one attack -> a line: memory of the process that is attacked, /health, who is left
       keys -> the time that a refusal takes, by how much of a key was right
Out:   a line an attack. The limits behind them: docs/limits.md; what each is a threat to: docs/security.md

Run:   python -m benchmarks.attacks [ATTACK …]   (three minutes; on the stub engines of benchmarks/stub_deployment.py)
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import resource
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import httpx
import uvloop

from benchmarks.door import Streams, endless_head, half_heads, memory_mb, probing, unfinished_bodies
from benchmarks.stub_deployment import StubDeployment, stub_deployment
from disagg.frontend.exchange import Exchange
from disagg.frontend.keys import Keys, Right
from disagg.models.resolve import resolve_model
from disagg.plane.framing import NONCE_BYTES

IDLE, SLOW_READERS, HALF_OPEN, SMUGGLERS, DRIPS = 10_500, 400, 2000, 2000, 200
KEYS, ROUNDS = 16, 20_000
UNREAD_S = 75.0  # a client that takes nothing is given up after 60
SMUGGLED = (
    b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"0\r\n\r\nGET /disagg/status HTTP/1.1\r\nHost: a\r\n\r\n"
)
STREAM = (
    b'{"model": "stub", "prompt": [5, 6, 7], "max_tokens": 8000, "stream": true, "ignore_eos": true, "temperature": 0}'
)


async def idle_connections(deployment: StubDeployment) -> str:
    """More than `frontend.connections_max`: the longest idle ones give way."""
    opened = await _open(deployment.url, IDLE)
    await asyncio.sleep(1.0)
    left = sum(not reader.at_eof() and reader.exception() is None for reader, _ in opened)
    _close(opened)
    return f"{len(opened)} opened, {left} stay open"


async def slow_readers(deployment: StubDeployment) -> str:
    """Streams of 8,000 tokens, of which nobody reads a byte."""
    opened = await _open(deployment.url, SLOW_READERS)
    for _, writer in opened:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(STREAM)
        writer.write(head + STREAM)
    await asyncio.sleep(UNREAD_S)
    async with httpx.AsyncClient(trust_env=False) as client:
        status = (await client.get(f"{deployment.url}/disagg/status")).json()
    running = sum(sum(engine["in_flight_by_rank"]) for engine in status["engines"] if engine["role"] == "decode")
    left = sum(not reader.at_eof() and reader.exception() is None for reader, _ in opened)
    _close(opened)
    return f"after {UNREAD_S:.0f} s unread {running} generate, {left} are connected"


async def slow_bodies(deployment: StubDeployment) -> str:
    """A byte a second."""
    opened = await _open(deployment.url, DRIPS)
    for _, writer in opened:
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
    for _ in range(35):
        for _, writer in opened:
            writer.write(b" ")
        await asyncio.sleep(1.0)
    left = sum(not reader._eof for reader, _ in opened)  # type: ignore[attr-defined]
    _close(opened)
    return f"{len(opened)} opened, {left} left after 35 s"


async def smuggling(deployment: StubDeployment) -> str:
    """A length beside a coding, and a second request in what a wrong reader takes for the body's rest."""
    refused = 0
    for _ in range(SMUGGLERS):
        ((reader, writer),) = await _open(deployment.url, 1)
        writer.write(SMUGGLED)
        answer = await reader.read()
        refused += answer.count(b"HTTP/1.1 ") == 1 and answer.startswith(b"HTTP/1.1 400 ")
        writer.close()
    return f"{refused} of {SMUGGLERS} refused with one 400, and closed"


async def half_open_peers(deployment: StubDeployment) -> str:
    """On the request plane of an engine's host: connections that never prove the secret."""
    opened = await _open(f"http://{deployment.planes['decode']}", HALF_OPEN)
    await asyncio.sleep(1.0)
    left = 0
    for reader, _ in opened:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await asyncio.wait_for(reader.readexactly(NONCE_BYTES), 1)
            left += not reader.at_eof()
    _close(opened)
    return f"{HALF_OPEN} opened, {left} held"


class Attack(NamedTuple):
    what: str
    run: Callable[[StubDeployment], Awaitable[str]]
    victim: str = "frontend"


def _of_port(attack: Callable[[int], Awaitable[str]]) -> Callable[[StubDeployment], Awaitable[str]]:
    return lambda deployment: attack(int(deployment.url.rpartition(":")[2]))


ATTACKS = {
    "idle": Attack(f"{IDLE} idle connections", idle_connections),
    "heads": Attack("10000 half heads (slowloris)", _of_port(half_heads)),
    "head": Attack("a head of 200 MB", _of_port(endless_head)),
    "bodies": Attack("120 unfinished bodies of 8 MB", _of_port(unfinished_bodies)),
    "drips": Attack(f"{DRIPS} bodies of a byte a second", slow_bodies),
    "readers": Attack(f"{SLOW_READERS} streams nobody reads", slow_readers),
    "smuggling": Attack(f"{SMUGGLERS} smuggled requests", smuggling),
    "peers": Attack(f"{HALF_OPEN} half-open peers of a host", half_open_peers, "decode"),
}


async def _open(url: str, count: int) -> list[Streams]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return [await asyncio.open_connection(host, int(port)) for _ in range(count)]


def _close(opened: list[Streams]) -> None:
    for _, writer in opened:
        writer.close()


async def measure(attack: Attack) -> None:
    async with stub_deployment(Path(resolve_model("smollm2"))) as deployment:
        pid, port = deployment.pids[attack.victim], int(deployment.url.rpartition(":")[2])
        before_mb = memory_mb(pid, "VmRSS")
        async with probing(port) as took_ms:
            outcome = await attack.run(deployment)
        await asyncio.sleep(3.0)
        most_mb, after_mb = memory_mb(pid, "VmHWM"), memory_mb(pid, "VmRSS")
        print(
            f"{attack.what:<32} /health p50 {statistics.median(took_ms):5.1f}, longest {max(took_ms):6.0f} ms; "
            f"memory {before_mb:.0f} -> {most_mb:.0f} -> {after_mb:.0f} MB; {outcome}",
            flush=True,
        )


class _Call:
    """As much of one as keys look at."""

    def __init__(self, key: str) -> None:
        fields = [(b"host", b"a"), (b"authorization", b"Bearer " + key.encode())]
        self.head = type("Head", (), {"method": "GET", "path": "/v1/models", "fields": fields, "minor": 1})
        self.client = "10.0.0.1"


def key_timing() -> None:
    """Wrong keys that share nothing, half, or all but a letter with a right one; in turns, so that drift hits all."""
    right = [os.urandom(24).hex() for _ in range(KEYS)]
    keys, last = Keys(right), right[-1]
    guesses = {"nothing": "x" * 48, "half": last[:24] + "x" * 24, "all but a letter": last[:-1] + "x"}
    took_ns: dict[str, list[int]] = {how: [] for how in guesses}
    for _ in range(ROUNDS):
        for how in random.sample(list(guesses), len(guesses)):
            exchange = Exchange(_Call(guesses[how]))  # type: ignore[arg-type]
            began_ns = time.perf_counter_ns()
            with contextlib.suppress(Exception):
                keys.check(exchange, Right.CLIENT)
            took_ns[how].append(time.perf_counter_ns() - began_ns)
    medians = {how: statistics.median(times) for how, times in took_ns.items()}
    spread = max(medians.values()) - min(medians.values())
    noise = statistics.quantiles(took_ns["nothing"], n=4)
    said = ", ".join(f"{how} {median / 1e3:.2f} µs" for how, median in medians.items())
    print(
        f"a wrong key of {KEYS} is refused, by what it shares with a right one: {said}; they differ by "
        f"{spread:.0f} ns, half of all refusals of one of them by {noise[2] - noise[0]:.0f} ns",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attacks", nargs="*", choices=[*ATTACKS, "keys", []], help="all, if none is named")
    named = parser.parse_args().attacks or [*ATTACKS, "keys"]
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    for name in named:
        if name == "keys":
            key_timing()
        else:
            uvloop.run(measure(ATTACKS[name]))


if __name__ == "__main__":
    main()
