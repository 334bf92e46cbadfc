"""What a prompt of 100,000 tokens costs the streams that run meanwhile, where the model takes it: the gaps between
tokens of others while it is read, and by how much their p99 moves.

Way:   8 streams, a token each 5 ms -> prompts, one after the other -> the gaps of all streams meanwhile; in a
       frontend that has the tokenizer, and in one whose engines have it, in turns
Out:   a line for each kind and each tokenisation, medians over the rounds

Run:   python -m benchmarks.long_prompts [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import uvloop

from benchmarks.long_bodies import CHAT, KINDS, QUIET, STEP_MS, TEXT, Gaps, beside_streams, quick_post
from benchmarks.prompts import Prompts
from benchmarks.stub_deployment import stub_deployment
from disagg.models.resolve import resolve_model

CONTEXT_TOKENS, PROMPT_TOKENS, PROMPTS, QUIET_REQUESTS = 131_072, 100_000, 12, 300
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


async def measure(model: Path, tokenization: str) -> dict[str, Gaps]:
    said = {"model": "stub", "max_tokens": 1}
    kinds = {"text": TEXT, "chat": CHAT}
    async with stub_deployment(model, STEP_MS, context_tokens=CONTEXT_TOKENS, tokenization=tokenization) as deployment:
        path, body = KINDS[QUIET]
        quiet = [quick_post(deployment.url, path, said | body)] * QUIET_REQUESTS
        found = {QUIET: await beside_streams(deployment.url, QUIET, quiet, may_fail=False)}
        for kind, path in kinds.items():
            texts = Prompts(model, 47).texts(PROMPTS, PROMPT_TOKENS)
            asks: list[dict[str, Any]] = [{"prompt": text} for text in texts]
            if path == CHAT:
                asks = [{"messages": [{"role": "user", "content": text}]} for text in texts]
            requests = [quick_post(deployment.url, path, said | ask) for ask in asks]
            found[kind] = await beside_streams(deployment.url, kind, requests, may_fail=False)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    rounds: dict[str, list[dict[str, Gaps]]] = {name: [] for name in TOKENIZATIONS}
    with long_context(Path(resolve_model("smollm2"))) as model:
        for number in range(arguments.rounds):
            for name in TOKENIZATIONS[:: -1 if number % 2 else 1]:  # a machine's drift hits both
                rounds[name].append(uvloop.run(measure(model, name)))
    for name, rows in rounds.items():
        for kind in rows[0]:
            each = Gaps(*(median(row[kind][column] for row in rows) for column in range(4)))
            moved = [row[kind].p99 - row[QUIET].p99 for row in rows]
            gaps = f"gaps p50 {each.p50:5.1f} p99 {each.p99:5.1f} max {each.longest:6.1f} ms"
            moves = f"p99 moves by {median(moved):+5.1f} ({min(moved):+5.1f}..{max(moved):+5.1f})"
            print(f"{name:<9} {kind:<13} {gaps}; {moves}; answer {each.answer:6.1f} ms")


if __name__ == "__main__":
    main()
