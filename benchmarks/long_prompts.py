"""What a prompt of 100,000 tokens costs the streams that run meanwhile, where the model takes it: the gaps between
tokens of others while it is read, and by how much their p99 moves.

Way:   8 streams, a token each 5 ms -> prompts, one after the other -> the gaps of all streams meanwhile; in a
       frontend that has the tokenizer, and in one whose engines have it, in turns
Out:   a line for each kind and each tokenisation, medians over the rounds: gaps, by how much their p99 moved, how long
       an answer took, and the CPU that a prompt cost in each process, its share of the streams included. This one
       sends and reads: where its share is large, the gaps are its own

Run:   python -m benchmarks.long_prompts [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import uvloop

from benchmarks.load import drive
from benchmarks.long_bodies import CHAT, KINDS, QUIET, STEP_MS, TEXT, Gaps, beside_streams, quick_post
from benchmarks.processes import cpu_s
from benchmarks.prompts import Prompts
from benchmarks.stub_deployment import StubDeployment, stub_deployment
from disagg.models.resolve import resolve_model

CONTEXT_TOKENS, PROMPT_TOKENS, QUIET_REQUESTS = 131_072, 100_000, 300
PROMPTS = 40  # a second of steps of 5 ms: of 12 prompts' time the p99 was the longest gap
FIRST = 4  # not counted: each engine's host starts a reader of long bodies, which takes a second
TOKENIZATIONS = ("frontend", "engine")


@contextmanager
def long_context(model: Path) -> Iterator[Path]:
    """A folder of the same model, whose configuration says CONTEXT_TOKENS."""
    with TemporaryDirectory() as made:
        folder = Path(made)
        for file in model.iterdir():
            if file.name != "config.json":
                (folder / file.name).symlink_to(file)
        told = json.loads((model / "config.json").read_text()) | {"max_position_embeddings": CONTEXT_TOKENS}
        (folder / "config.json").write_text(json.dumps(told))
        yield folder


class Cost(NamedTuple):
    gaps: Gaps
    cpu_ms: dict[str, float]  # by process, a request


async def measure(model: Path, tokenization: str) -> dict[str, Cost]:
    said = {"model": "stub", "max_tokens": 1}
    kinds = {"text": TEXT, "chat": CHAT}
    async with stub_deployment(model, STEP_MS, context_tokens=CONTEXT_TOKENS, tokenization=tokenization) as deployment:
        path, body = KINDS[QUIET]
        quiet = [quick_post(deployment.url, path, said | body)] * QUIET_REQUESTS
        found = {QUIET: await _cost(deployment, QUIET, quiet)}
        for kind, path in kinds.items():
            texts = Prompts(model, 47).texts(FIRST + PROMPTS, PROMPT_TOKENS)
            asks: list[dict[str, Any]] = [{"prompt": text} for text in texts]
            if path == CHAT:
                asks = [{"messages": [{"role": "user", "content": text}]} for text in texts]
            requests = [quick_post(deployment.url, path, said | ask) for ask in asks]
            await drive(deployment.url, requests[:FIRST], 1)
            found[kind] = await _cost(deployment, kind, requests[FIRST:])
    return found


async def _cost(deployment: StubDeployment, kind: str, requests: list[bytes]) -> Cost:
    pids = deployment.pids | {"this": os.getpid()}
    before_s: dict[str, float] = {}

    def begins() -> None:
        before_s.update({name: cpu_s([pid]) for name, pid in pids.items()})

    gaps = await beside_streams(deployment.url, kind, requests, may_fail=False, begins=begins)
    used_s = {name: cpu_s([pid]) - before_s[name] for name, pid in pids.items()}
    return Cost(gaps, {name: each * 1e3 / len(requests) for name, each in used_s.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    rounds: dict[str, list[dict[str, Cost]]] = {name: [] for name in TOKENIZATIONS}
    with long_context(Path(resolve_model("smollm2"))) as model:
        for number in range(arguments.rounds):
            for name in TOKENIZATIONS[:: -1 if number % 2 else 1]:  # a machine's drift hits both
                rounds[name].append(uvloop.run(measure(model, name)))
    for name, rows in rounds.items():
        for kind in rows[0]:
            each = Gaps(*(median(row[kind].gaps[column] for row in rows) for column in range(4)))
            moved = [row[kind].gaps.p99 - row[QUIET].gaps.p99 for row in rows]
            cpu = ", ".join(f"{at} {median(row[kind].cpu_ms[at] for row in rows):.1f}" for at in rows[0][kind].cpu_ms)
            gaps = f"gaps p50 {each.p50:5.1f} p99 {each.p99:5.1f} max {each.longest:6.1f} ms"
            moves = f"p99 moves by {median(moved):+5.1f} ({min(moved):+5.1f}..{max(moved):+5.1f})"
            print(f"{name:<9} {kind:<13} {gaps}; {moves}; answer {each.answer:6.1f} ms; CPU, ms: {cpu}")


if __name__ == "__main__":
    main()
