"""What hostile bodies, and long prompts, cost the streams that run meanwhile: the gaps between tokens of others while
one is read.

Way:   8 streams, a token each 5 ms -> bodies of one kind, one after the other, or 6 prompts at once -> the gaps of
       all streams meanwhile
Out:   a line for each kind: p50, p99 (and by how much it moved from that of a quiet time) and the longest gap, and how
       long the body's answer took; medians over the rounds

Run:   python -m benchmarks.long_bodies [--rounds 5] [--kind "2 MB of schema"] [--against CHECKOUT]
       with --against, another checkout's frontend is measured too, in turns with this one's
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import uvloop

from benchmarks.load import STREAMED, Answer, drive, post
from benchmarks.prompts import random_prompts
from benchmarks.stub_deployment import stub_deployment
from disagg.models.resolve import resolve_model

STEP_MS, STREAMS, STREAM_TOKENS, BODIES, PROMPTS = 5.0, 8, 8_000, 3, 6
BEFORE_S = 0.7
VOCABULARY = 49_000  # below SmolLM2's
MESSAGE: dict[str, str] = {"role": "user", "content": ""}
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"

SCHEMA = {"type": "object", "properties": {f"property {number:05d}": {"type": "string"} for number in range(45_000)}}

# kind -> path and body; each near the limit of 8 MiB but for the first four. The first is what the others are
# compared with.
QUIET = "50 token ids"
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    QUIET: (TEXT, {"prompt": list(range(50))}),
    "100,000 tokens": (TEXT, {"prompt": "word " * 100_000}),
    "2 MB of schema": (
        CHAT,
        {
            "messages": [MESSAGE],
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
        },
    ),
    "32 KB of messages": (CHAT, {"messages": [MESSAGE] * 1_000}),
    "240,000 messages": (CHAT, {"messages": [MESSAGE] * 240_000}),
    "2.7 million lists": (CHAT, {"messages": [MESSAGE], "metadata": [[]] * 2_700_000}),
    "4 million token ids": (TEXT, {"prompt": [1] * 4_000_000}),
    "600,000 names": (CHAT, {f"{number:07d}": 1 for number in range(600_000)}),
    "8 MB of text": (TEXT, {"prompt": "word " * 1_600_000}),
}
QUICK = {QUIET: 60, "100,000 tokens": 20, "2 MB of schema": 10}  # bodies: enough gaps for their p99
AT_ONCE: dict[str, tuple[str, dict[str, Any]]] = {
    "6 x 8,000 token ids": (TEXT, {"prompt": list(range(3, 8_003))}),
    "6 x 8,000 words": (TEXT, {"prompt": "word " * 8_000}),
}


class Gaps(NamedTuple):
    """Of the streams while bodies are read, and the time that one of those takes; ms."""

    p50: float
    p99: float
    longest: float
    answer: float


def quick_post(url: str, path: str, body: dict[str, Any]) -> bytes:
    """As `post`, with JSON without blanks."""
    data = json.dumps(body, separators=(",", ":")).encode()
    head, _, _ = post(url, path, {}).partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-length")]
    return b"\r\n".join([*lines, b"content-length: %d" % len(data), b"", b""]) + data


async def measure(kinds: list[str]) -> dict[str, Gaps]:
    found = {}
    async with stub_deployment(Path(resolve_model("smollm2")), STEP_MS) as deployment:
        for kind in kinds:
            path, fields = (KINDS | AT_ONCE)[kind]
            count, at_once = (PROMPTS, PROMPTS) if kind in AT_ONCE else (QUICK.get(kind, BODIES), 1)
            hostile = quick_post(deployment.url, path, {"model": "stub", "max_tokens": 1, **fields})
            if at_once > 1:  # the frontend starts another reader of bodies for them, which takes seconds, once
                await drive(deployment.url, [hostile] * at_once, at_once)
            found[kind] = await beside_streams(deployment.url, kind, [hostile] * count, at_once)
    return found


async def beside_streams(
    url: str,
    seed: str,
    requests: list[bytes],
    at_once: int = 1,
    *,
    may_fail: bool = True,
    begins: Callable[[], None] = lambda: None,
) -> Gaps:
    """`seed`: of the streams' prompts; `may_fail`: most bodies are refused, and that is their answer; `begins` is
    called once the streams run."""
    body = {"model": "stub", "max_tokens": STREAM_TOKENS, "ignore_eos": True, **STREAMED}
    streams = [post(url, TEXT, body | {"prompt": prompt}) for prompt in random_prompts(seed, STREAMS, 50, VOCABULARY)]
    answers: list[Answer] = []
    running = asyncio.create_task(drive(url, streams, STREAMS, sink=answers))
    await asyncio.sleep(BEFORE_S)
    begins()
    began_s = time.perf_counter()
    ends = await drive(url, requests, at_once)
    ended_s = time.perf_counter()
    running.cancel()
    await asyncio.wait([running])
    assert may_fail or not any(end.error for end in ends), next(end.error for end in ends if end.error)
    gaps_ms = list(_gaps_ms(answers, began_s, ended_s))
    cuts = quantiles(gaps_ms, n=100)
    return Gaps(cuts[49], cuts[98], max(gaps_ms), (ended_s - began_s) / len(requests) * 1e3)


def _gaps_ms(streams: list[Answer], from_s: float, to_s: float) -> list[float]:
    steps = (step for answer in streams for step in answer.steps_s)
    return [(after_s - before_s) * 1e3 for before_s, after_s in steps if before_s < to_s and after_s > from_s]


def measured_in(checkout: Path, kinds: list[str]) -> dict[str, list[float]]:
    """By this file with that checkout's code."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "PYTHONSAFEPATH": "1"}
    words = [sys.executable, __file__, "--once", *(word for kind in kinds for word in ("--kind", kind))]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    rows: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", type=Path, help="another checkout of this repository")
    every = list(KINDS | AT_ONCE)
    parser.add_argument("--kind", action="append", choices=every, help="this one, beside the quiet one; else all")
    parser.add_argument("--once", action="store_true", help="one round, as JSON")
    arguments = parser.parse_args()
    kinds = [kind for kind in every if arguments.kind is None or kind in (QUIET, *arguments.kind)]
    if arguments.once:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            print(json.dumps(runner.run(measure(kinds))))
        return
    here = Path(__file__).resolve().parents[1]
    checkouts = {"here": here} | ({"there": arguments.against.resolve()} if arguments.against else {})
    rounds: dict[str, list[dict[str, list[float]]]] = {name: [] for name in checkouts}
    for number in range(arguments.rounds):
        for name in list(checkouts)[:: -1 if number % 2 else 1]:  # a machine's drift hits both
            rounds[name].append(measured_in(checkouts[name], kinds))
    for kind in kinds:
        for name, rows in rounds.items():
            p50, p99, longest, took = (median(row[kind][column] for row in rows) for column in range(4))
            moved = median(row[kind][1] - row[QUIET][1] for row in rows)
            gaps = f"gaps p50 {p50:5.1f} p99 {p99:6.1f} ({moved:+6.1f}) max {longest:7.1f} ms"
            print(f"{name:<6} {kind:<20} {gaps}; answer {took:8.1f} ms")


if __name__ == "__main__":
    main()
