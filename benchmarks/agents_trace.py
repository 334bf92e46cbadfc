"""A made-up trace of agents: long system prompts that many sessions share, tool calls and their pauses, forks.

    python -m benchmarks.agents_trace OUT.jsonl.gz [--requests 12000] [--seed 1]

Way:   sessions come at random, each of one of APPS, whose system prompt and tools it begins with -> turns: an answer, a
       pause (a tool runs, or a person reads), and a longer prompt -> now and then a fork: sub-agents that go on from
       the whole context, or from the system prompt alone; the session waits for all of them
Out:   Mooncake's form, which says what sessions share with each other: an open trace. Pauses were laid out as if each
       answer took ANSWER_S and TOKEN_S a token, and do not grow where a deployment is slower
Why:   the public traces show one service each, and no session shares anything with another in that of coding agents.
       The numbers here were set before any policy ran on it, and have not been changed since
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from math import log
from pathlib import Path
from random import Random

from disagg.replay.traces.mooncake import BLOCK_TOKENS

APPS, APP_TOKENS = 12, (6_000, 24_000)  # the first has twice the sessions of the second, thrice those of the third
SESSIONS_A_SECOND, WARM_S = 2.0, 180.0  # what begins before is left out, so that sessions of all ages are there
TURNS, SUB_TURNS = 15.0, 4.0  # on average
ASKED, TOLD, ANSWERED = (600, 1.0, 8_000), (800, 1.2, 20_000), (150, 0.9, 2_000)  # tokens: median, spread, most
TOOL_S, PERSON_S, PERSON_SHARE = (1.5, 1.0, 30.0), (20.0, 0.8, 60.0), 0.1
FORK_SHARE, FORKS, WHOLE_SHARE = 0.08, (2, 4), 0.5
CONTEXT_MAX = 120_000  # tokens; a session ends there
ANSWER_S, TOKEN_S = 0.5, 0.01


@dataclass(frozen=True, slots=True)
class Context:
    """Its full blocks, and the tokens beyond them."""

    blocks: tuple[int, ...] = ()
    rest: int = 0

    @property
    def tokens(self) -> int:
        return len(self.blocks) * BLOCK_TOKENS + self.rest

    def longer(self, tokens: int, new_block: Callable[[], int]) -> Context:
        count, rest = divmod(self.rest + tokens, BLOCK_TOKENS)
        return Context(self.blocks + tuple(new_block() for _ in range(count)), rest)


class Agents:
    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._new_block = itertools.count().__next__
        self._rows: list[tuple[float, Context, int]] = []  # when, prompt, tokens of the answer
        self._apps = [Context().longer(self._random.randint(*APP_TOKENS), self._new_block) for _ in range(APPS)]

    def rows(self, count: int) -> list[dict[str, object]]:
        weights, at_s = [1 / (number + 1) for number in range(APPS)], 0.0
        while sum(row[0] >= WARM_S for row in self._rows) < 2 * count:
            for _ in range(100):
                at_s += self._random.expovariate(SESSIONS_A_SECOND)
                app = self._random.choices(self._apps, weights)[0]
                self._agent(app, app, at_s, TURNS, may_fork=True)
        ordered = sorted((row for row in self._rows if WARM_S <= row[0] < at_s), key=lambda row: row[0])
        return [self._row(*row) for row in ordered[:count]]

    def _agent(self, app: Context, context: Context, at_s: float, turns: float, may_fork: bool) -> float:
        """When it ends. `app`: what sub-agents without the whole context begin with."""
        random = self._random
        context = context.longer(self._tokens(ASKED), self._new_block)
        for _ in range(1 + int(random.expovariate(1 / turns))):
            if context.tokens > CONTEXT_MAX:
                break
            answer = self._tokens(ANSWERED)
            self._rows.append((at_s, context, answer))
            at_s += ANSWER_S + TOKEN_S * answer
            context = context.longer(answer, self._new_block)
            if may_fork and random.random() < FORK_SHARE:
                begins = context if random.random() < WHOLE_SHARE else app
                ends_s = [self._agent(app, begins, at_s, SUB_TURNS, False) for _ in range(random.randint(*FORKS))]
                at_s = max(ends_s)
            at_s += self._drawn(PERSON_S if random.random() < PERSON_SHARE else TOOL_S)
            context = context.longer(self._tokens(TOLD), self._new_block)
        return at_s

    def _row(self, at_s: float, prompt: Context, answer: int) -> dict[str, object]:
        ids = [*prompt.blocks, *([self._new_block()] if prompt.rest else [])]
        at_ms = round((at_s - WARM_S) * 1e3)
        return {"timestamp": at_ms, "input_length": prompt.tokens, "output_length": answer, "hash_ids": ids}

    def _tokens(self, of: tuple[float, float, float]) -> int:
        return max(1, int(self._drawn(of)))

    def _drawn(self, of: tuple[float, float, float]) -> float:
        median, spread, most = of
        return min(most, self._random.lognormvariate(log(median), spread))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--requests", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    lines = "".join(f"{json.dumps(row)}\n" for row in Agents(options.seed).rows(options.requests))
    options.out.write_bytes(gzip.compress(lines.encode(), mtime=0))


if __name__ == "__main__":
    main()
