"""Completions with random sampling parameters: is each answered or refused by name, does every engine live?

Way:   a test, or a stage on a GPU -> [campaign] -> any deployment's HTTP door; a Result comes back
In:    the base URL without /v1, how many requests, how many at once, and a seed that decides every one of them
Out:   a table; the exit status says whether it passed
Fails: never on an answer: what is neither a 200 nor a 400 that names its parameter is counted, and spoils the result

Usage: python -m benchmarks.random_requests --url http://127.0.0.1:8000 --model smollm2 [--requests 600] [--seed 1]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx

REQUESTS, CONCURRENCY, SEED = 600, 24, 1
ANSWER_S = 300.0
FULL_PAUSE_S, FULL_MAX = 1.0, 300  # a 429 is asked again so often: a slow machine is full sooner
PROMPT_TOKENS = 24
TOKENS_MAX = 8
FIRST_ID, LAST_ID = 300, 1000  # of prompts: words of any vocabulary that we serve


@dataclass(slots=True)
class Result:
    """Times are seconds."""

    requests: int
    answered: int = 0
    refused: Counter[str] = field(default_factory=Counter)  # 400s: parameter and code -> how many
    failed: Counter[str] = field(default_factory=Counter)  # anything else: status and code, or what broke -> how many
    full: int = 0  # 429s, each of which was asked again
    died: list[str] = field(default_factory=list)  # engines that are in another life than before, or not ready
    examples: dict[str, dict[str, Any]] = field(default_factory=dict)  # of `failed`: one body each
    answer_s: list[float] = field(default_factory=list)
    silence_s: float = 0.0  # the longest time in which no byte of any answer came
    lasted_s: float = 0.0

    @property
    def passed(self) -> bool:
        return self.answered + self.refused.total() == self.requests and not (self.failed or self.died)

    def table(self) -> str:
        slowest_s, median_s = max(self.answer_s, default=0.0), sorted(self.answer_s or [0.0])[len(self.answer_s) // 2]
        rows = [
            ("requests", f"{self.requests} in {self.lasted_s:.1f} s"),
            ("answered", str(self.answered)),
            ("refused by name", _counts(self.refused)),
            ("failed", _counts(self.failed)),
            ("full, asked again", str(self.full)),
            ("engines that died", ", ".join(self.died) or "0"),
            ("answer", f"median {median_s:.2f} s, longest {slowest_s:.2f} s"),
            ("longest pause of all", f"{self.silence_s:.2f} s"),
            ("passed", "yes" if self.passed else "NO"),
        ]
        failures = [f"  {what}: {json.dumps(body)}" for what, body in self.examples.items()]
        return "\n".join([*(f"{name:<22}{value}" for name, value in rows), *failures])


async def campaign(
    base_url: str,
    count: int = REQUESTS,
    concurrency: int = CONCURRENCY,
    seed: int = SEED,
    model: str = "smollm2",
    tokens_max: int = TOKENS_MAX,
) -> Result:
    """Sends `count` random requests, `concurrency` of them at a time. The deployment must be ready, and not be drained
    or restarted by others meanwhile."""
    return await send(base_url, list(random_bodies(seed, count, model, tokens_max)), concurrency)


async def send(base_url: str, bodies: list[dict[str, Any]], concurrency: int) -> Result:
    """The same for bodies of one's own, which say whether they stream."""
    result, left = Result(len(bodies)), iter(bodies)
    limits = httpx.Limits(max_connections=concurrency)
    async with httpx.AsyncClient(base_url=base_url, trust_env=False, timeout=ANSWER_S, limits=limits) as client:
        before, began_s = await _lives(client), time.monotonic()
        pulse = _Pulse(began_s)
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(_one_after_the_other(client, left, result, pulse))
        result.lasted_s, result.silence_s = time.monotonic() - began_s, pulse.longest_s
        result.died = _died(before, await _lives(client))
    return result


def random_bodies(seed: int, count: int, model: str, tokens_max: int = TOKENS_MAX) -> Iterator[dict[str, Any]]:
    """The same ones for the same seed: values anywhere in their ranges, at the ends, and near nothing."""
    random = Random(seed)
    for _ in range(count):
        body: dict[str, Any] = {
            "model": model,
            "prompt": random.choices(range(FIRST_ID, LAST_ID), k=random.randint(1, PROMPT_TOKENS)),
            "max_tokens": random.randint(1, tokens_max),
            "ignore_eos": random.random() < 0.5,
            "stream": random.random() < 0.5,
            "temperature": random.choice([0, 1, 2, random.uniform(0, 2), random.uniform(0, 2), _tiny(random)]),
        }
        choices: dict[str, list[Any]] = {
            "top_p": [1, random.uniform(0.01, 1), random.uniform(0.5, 1), _tiny(random)],
            "top_k": [-1, 0, 1, 2, random.randint(1, 1000), random.randint(1, 2**40)],
            "min_p": [0, 1, random.random(), random.uniform(0, 0.2), _tiny(random)],
            "frequency_penalty": [-2, 0, 2, random.uniform(-2, 2), _tiny(random)],
            "presence_penalty": [-2, 0, 2, random.uniform(-2, 2), _tiny(random)],
            "repetition_penalty": [1, 2, random.uniform(0.5, 2), random.uniform(1, 1.3), _tiny(random)],
        }
        for name, values in choices.items():
            if random.random() < 0.4:
                body[name] = random.choice(values)
        if random.random() < 0.5:
            body["seed"] = random.choice([0, -1, 42, -(2**63), 2**63 - 1, random.getrandbits(62)])
        yield body


class _Pulse:
    """Notes the longest time between two beats."""

    def __init__(self, now_s: float) -> None:
        self._last_s, self.longest_s = now_s, 0.0

    def beat(self) -> None:
        now_s = time.monotonic()
        self.longest_s = max(self.longest_s, now_s - self._last_s)
        self._last_s = now_s


async def _one_after_the_other(
    client: httpx.AsyncClient, left: Iterator[dict[str, Any]], result: Result, pulse: _Pulse
) -> None:
    for body in left:
        began_s = time.monotonic()
        for _ in range(FULL_MAX):
            status, error = await _ask(client, body, pulse)
            if status != httpx.codes.TOO_MANY_REQUESTS:
                break
            result.full += 1
            await asyncio.sleep(FULL_PAUSE_S)
        if status == httpx.codes.OK and error is None:
            result.answered += 1
            result.answer_s.append(time.monotonic() - began_s)
        elif status == httpx.codes.BAD_REQUEST and error and error.get("param"):
            result.refused[f"{error['param']} {error['code']}"] += 1
        else:
            what = f"{status or 'broken'} {error['code'] if error else ''}".strip()
            result.failed[what] += 1
            result.examples.setdefault(what, body | {"error": error})


async def _ask(client: httpx.AsyncClient, body: dict[str, Any], pulse: _Pulse) -> tuple[int, dict[str, Any] | None]:
    """Status and OpenAI error of the answer, also of one in the midst of a stream; 0 where the connection broke."""
    text, status = b"", 0
    try:
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            status = answer.status_code
            async for part in answer.aiter_bytes():
                pulse.beat()
                text += part
    except httpx.HTTPError as error:
        return 0, {"code": type(error).__name__, "message": str(error)}
    if not body["stream"] or status != httpx.codes.OK:
        return status, _error_of(text)
    events = [line.removeprefix(b"data: ") for line in text.split(b"\n") if line.startswith(b"data: ")]
    if not events or events[-1] != b"[DONE]":
        error = next((found for event in events if (found := _error_of(event))), None)
        return status, error or {"code": "cut", "message": "the stream ended without [DONE]"}
    return status, None


def _error_of(text: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(text).get("error")
    except (ValueError, AttributeError):
        return {"code": "not_json", "message": text[:200].decode(errors="replace")}
    return found if isinstance(found, dict) else None


async def _lives(client: httpx.AsyncClient) -> dict[str, tuple[int, str]]:
    """Engine id -> its incarnation and state."""
    answer = await client.get("/disagg/status")
    answer.raise_for_status()
    return {engine["id"]: (engine["incarnation"], engine["state"]) for engine in answer.json()["engines"]}


def _died(before: dict[str, tuple[int, str]], after: dict[str, tuple[int, str]]) -> list[str]:
    died = []
    for name, (incarnation, _) in before.items():
        lives, state = after.get(name, (0, "gone"))
        if lives != incarnation:
            died.append(f"{name} {lives - incarnation} times")
        elif state != "ready":
            died.append(f"{name} ({state})")
    return died


def _tiny(random: Random) -> float:
    return float(10.0 ** random.uniform(-46, 0))


def _counts(counter: Counter[str]) -> str:
    each = ", ".join(f"{name}: {count}" for name, count in counter.most_common())
    return f"{counter.total()}" + (f" ({each})" if each else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="without /v1")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--concurrency", type=int, default=CONCURRENCY)
    parser.add_argument("--tokens", type=int, default=TOKENS_MAX, help="at most, of each answer")
    parser.add_argument("--seed", type=int, default=SEED)
    asked = parser.parse_args()
    result = asyncio.run(campaign(asked.url, asked.requests, asked.concurrency, asked.seed, asked.model, asked.tokens))
    print(result.table())
    return 0 if result.passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
