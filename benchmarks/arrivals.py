"""What long prompts cost the streams that run meanwhile: the frontend's and the hosts' share, engines being free.

Way:   8 streams, a token each 5 ms -> 6 prompts of N tokens at once -> the longest gap of any stream around that moment
Out:   a line for each kind of prompt: token ids, text, and 50 tokens for comparison; medians over the bursts

Run:   python -m benchmarks.arrivals [--tokens 8000] [--bursts 9]
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

from benchmarks.load import STREAMED, drive, post
from benchmarks.prompts import Prompts, random_prompts
from benchmarks.stub_deployment import stub_deployment
from disagg.models.resolve import resolve_model

STEP_MS, STREAMS, STREAM_TOKENS, LATE = 5.0, 8, 300, 6
BEFORE_S, LOOK_S = 0.7, 0.1
VOCABULARY = 49_000  # below SmolLM2's


async def _measure(tokens: int, bursts: int) -> None:
    model_path = Path(resolve_model("smollm2"))
    words = Prompts(model_path, seed=0)
    kinds: dict[str, Callable[[str], list[Any]]] = {
        "50 token ids": lambda seed: random_prompts(seed, LATE, 50, VOCABULARY),
        f"{tokens:,} token ids": lambda seed: random_prompts(seed, LATE, tokens, VOCABULARY),
        f"text of {tokens:,} tokens": lambda _: words.texts(LATE, tokens),
    }
    async with stub_deployment(model_path, STEP_MS) as deployment:

        def requests(prompts: list[Any], output: int) -> list[bytes]:
            body = {"model": "stub", "max_tokens": output, "ignore_eos": True, **STREAMED}
            return [post(deployment.url, "/v1/completions", body | {"prompt": prompt}) for prompt in prompts]

        for kind, prompts in kinds.items():
            worst_ms = []
            for number in range(bursts):
                seed = f"{kind} {number}"
                short = random_prompts(f"{seed} streams", STREAMS, 50, VOCABULARY)
                streams, late = requests(short, STREAM_TOKENS), requests(prompts(seed), 2)
                running = asyncio.create_task(drive(deployment.url, streams, STREAMS))
                await asyncio.sleep(BEFORE_S)
                arrived_s = time.perf_counter()
                answers = [*await drive(deployment.url, late, LATE), *await running]
                if errors := [answer.error for answer in answers if answer.error]:
                    raise SystemExit(errors[0])
                around = (step for answer in answers[LATE:] for step in answer.steps_s)
                gaps_s = [b - a for a, b in around if a < arrived_s + LOOK_S and b > arrived_s]
                worst_ms.append(max(gaps_s) * 1e3)
            print(f"{kind:<24} longest gap {median(worst_ms):5.1f} ms ({min(worst_ms):.1f}..{max(worst_ms):.1f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8_000)
    parser.add_argument("--bursts", type=int, default=9)
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_measure(arguments.tokens, arguments.bursts))


if __name__ == "__main__":
    main()
