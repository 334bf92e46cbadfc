"""The measurements, each of one deployment that is running.

Only the frontend's process tree is charged: workers and driver are not, but they take their share of the same cores.
`paced` is net of what a request costs by itself: it looks only at a window in which every stream has begun and none has
ended. `per_request` asks for one token, so that little else is in it.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.load import Answer, drive
from benchmarks.peers.deployments import Deployment
from benchmarks.processes import cpu_s, pss_mb, tree

SAMPLE_S = 0.05
AT_ONCE = 8  # requests under way while their cost is taken
TTFT_TOKENS = 4
ANSWER_S = 60.0


class Failed(Exception):
    """Some answers were errors: no number is told of such a measurement."""


@dataclass(frozen=True, slots=True)
class Paced:
    cpu_us_a_token: float
    pace: float  # tokens that came, of those that the workers' steps would give


async def paced(deployment: Deployment, texts: Sequence[str], step_ms: float, tokens: int) -> Paced:
    """As many streams as texts, all at once."""
    pids = tree(deployment.frontend_pid)
    samples: list[tuple[float, float]] = []

    async def sample() -> None:
        while True:
            samples.append((time.perf_counter(), cpu_s(pids)))
            await asyncio.sleep(SAMPLE_S)

    sampling = asyncio.create_task(sample())
    answers = await _drive(deployment, [deployment.chat(text, tokens) for text in texts], len(texts))
    sampling.cancel()
    (from_s, cpu_from_s), (to_s, cpu_to_s) = window(samples, answers)
    came = sum(answer.events_between(from_s, to_s) for answer in answers)  # each holds one token
    return Paced((cpu_to_s - cpu_from_s) / came * 1e6, came / len(texts) * step_ms / 1e3 / (to_s - from_s))


def window(samples: Sequence[tuple[float, float]], answers: Sequence[Answer]) -> tuple[tuple[float, float], ...]:
    """The first and the last sample of the time in which all streams run."""
    began_s = max(answer.first_s for answer in answers)
    ended_s = min(answer.came_s[-1] for answer in answers)
    inside = [sample for sample in samples if began_s <= sample[0] < ended_s - SAMPLE_S]
    if len(inside) < 2:
        raise Failed("the streams never ran all at once: longer ones are needed")
    return inside[0], inside[-1]


async def per_request(deployment: Deployment, texts: Sequence[str]) -> float:
    """CPU microseconds of the frontend."""
    requests = [deployment.chat(text, 1) for text in texts]
    pids = tree(deployment.frontend_pid)
    before_s = cpu_s(pids)
    await _drive(deployment, requests, AT_ONCE)
    return (cpu_s(pids) - before_s) / len(texts) * 1e6


async def ttft(deployment: Deployment, texts: Sequence[str]) -> list[float]:
    """Milliseconds, one request after the other on one connection."""
    answers = await _drive(deployment, [deployment.chat(text, TTFT_TOKENS) for text in texts], 1)
    return [answer.ttft_s * 1e3 for answer in answers]


@dataclass(frozen=True, slots=True)
class Saturated:
    tokens_per_s: float
    requests_per_s: float
    ttft_ms: list[float]


async def saturated(
    deployment: Deployment, texts: Sequence[str], clients: int, tokens: int, seconds: float
) -> Saturated:
    """Each client sends the next request when its last one has ended; workers answer as fast as they can."""
    requests = [deployment.chat(text, tokens) for text in texts]
    answers = await _drive(deployment, _until(time.perf_counter() + seconds, requests), clients)
    took_s = max(answer.ended_s for answer in answers) - min(answer.sent_s for answer in answers)
    return Saturated(
        sum(answer.completion_tokens for answer in answers) / took_s,
        len(answers) / took_s,
        [answer.ttft_s * 1e3 for answer in answers],
    )


def _until(end_s: float, requests: Sequence[bytes]) -> Iterator[bytes]:
    return itertools.takewhile(lambda _: time.perf_counter() < end_s, itertools.cycle(requests))


async def _drive(deployment: Deployment, requests: Iterable[bytes], clients: int) -> list[Answer]:
    try:
        answers = await drive(deployment.url, requests, clients, limit_s=ANSWER_S)
    except ExceptionGroup as group:
        raise Failed(f"no connection: {group.exceptions[0]}") from group
    if errors := [answer.error for answer in answers if answer.error]:
        raise Failed(f"{len(errors)} of {len(answers)} answers failed, first: {errors[0][:60]}")
    return answers


def memory_mb(deployment: Deployment) -> float:
    return pss_mb(tree(deployment.frontend_pid))
