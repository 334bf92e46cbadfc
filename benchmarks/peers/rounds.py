"""What is measured when: three phases (workers at full speed, at 10 ms and at 50 ms a step), in each all deployments up
at once, measured one at a time, in rounds that take turns forwards and backwards.

Out:   Results: of each deployment and metric the values of all rounds, and what could not be measured and why
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles

from benchmarks.peers import measure
from benchmarks.peers.deployments import FLOOR, Deployment, NotReady, running
from benchmarks.peers.others import Others
from benchmarks.prompts import Prompts

SHORT, MIDDLE, LONG = 46, 500, 8000  # tokens of a prompt
PACES = ((64, 10.0, 0.5), (512, 50.0, 2.5))  # streams, milliseconds a step, seconds until all have begun
CLIENTS = (64, 512)
STREAM_TOKENS = 128  # of an answer where tok/s is taken
TEXTS = 4096  # then they repeat: no peer keeps so many


@dataclass(frozen=True, slots=True)
class Extent:
    rounds: int
    seconds: float  # of a saturated measurement
    paced_s: float
    ttft_requests: int
    middle_requests: int
    long_requests: int


FULL = Extent(rounds=5, seconds=2.0, paced_s=3.0, ttft_requests=200, middle_requests=300, long_requests=60)
QUICK = Extent(rounds=2, seconds=1.0, paced_s=2.0, ttft_requests=60, middle_requests=150, long_requests=30)


@dataclass(slots=True)
class Results:
    values: dict[str, dict[str, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    notes: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    others: list[float] = field(default_factory=list)  # what other processes took of the cores, round by round

    def put(self, name: str, metric: str, value: float) -> None:
        self.values[name][metric].append(value)

    def note(self, name: str, what: str) -> None:
        if what not in self.notes[name]:
            self.notes[name].append(what)

    def summary(self, name: str) -> dict[str, float]:
        """Medians over rounds; of the TTFTs, which are of single requests, percentiles over all."""
        told: dict[str, float] = {}
        for metric, values in self.values[name].items():
            if metric.startswith("ttft"):
                told[f"{metric}_p50"], told[f"{metric}_p99"] = median(values), percentile_99(values)
            else:
                told[metric] = median(values)
        return told


def percentile_99(values: Sequence[float]) -> float:
    return quantiles(values, n=100, method="inclusive")[98] if len(values) > 1 else values[0]


async def measure_all(pythons: dict[str, Path], model_path: Path, extent: Extent) -> Results:
    """`pythons`: of each deployment, in the order of the table."""
    results, prompts = Results(), Prompts(model_path, seed=7)
    for streams, step_ms, begin_s in ((0, 0.0, 0.0), *PACES):
        with tempfile.TemporaryDirectory(prefix="disagg-peers-", ignore_cleanup_errors=True) as scratch:
            async with AsyncExitStack() as stack:
                up = await _up(pythons, step_ms, model_path, Path(scratch), stack, results)
                for number in range(extent.rounds):
                    others = Others()
                    for deployment in up if number % 2 == 0 else reversed(up):
                        print(f"round {number + 1}, {step_ms:g} ms a step: {deployment.name}", file=sys.stderr)
                        one = _Round(results, deployment, prompts, extent)
                        await (one.paced(streams, step_ms, begin_s) if streams else one.at_full_speed())
                    results.others.append(others.share())
                if not streams:
                    for deployment in up:
                        if used_mb := measure.memory_mb(deployment):
                            results.put(deployment.name, "pss_after_mb", used_mb)
    return results


async def _up(
    pythons: dict[str, Path], step_ms: float, model_path: Path, scratch: Path, stack: AsyncExitStack, results: Results
) -> list[Deployment]:
    up = []
    for name, python in pythons.items():
        if name == FLOOR and step_ms:
            continue
        folder = scratch / name
        folder.mkdir()
        try:
            deployment = await stack.enter_async_context(running(name, step_ms, python, model_path, folder))
        except NotReady as error:
            results.note(name, str(error))
            continue
        up.append(deployment)
        if name != FLOOR:
            results.put(name, "ready_s", deployment.ready_s)
        if name != FLOOR and not step_ms:
            results.put(name, "pss_idle_mb", measure.memory_mb(deployment))
    return up


@dataclass(frozen=True, slots=True)
class _Round:
    results: Results
    deployment: Deployment
    prompts: Prompts
    extent: Extent

    async def paced(self, streams: int, step_ms: float, begin_s: float) -> None:
        tokens = int((begin_s + self.extent.paced_s) * 1e3 / step_ms)
        with self._noting(f"{streams} streams"):
            got = await measure.paced(self.deployment, self.prompts.texts(streams, SHORT), step_ms, tokens)
            self._put(f"token_us_{streams}", got.cpu_us_a_token)
            self._put(f"pace_{streams}", got.pace)

    async def at_full_speed(self) -> None:
        deployment, extent, texts = self.deployment, self.extent, self.prompts.texts
        with self._noting("warming up"):
            await measure.saturated(deployment, texts(256, SHORT), 16, 16, 0.3)
        with self._noting("TTFT"):
            for at in await measure.ttft(deployment, texts(extent.ttft_requests, SHORT)):
                self._put("ttft_1", at)
        if deployment.name != FLOOR:
            for tokens, count in ((MIDDLE, extent.middle_requests), (LONG, extent.long_requests)):
                with self._noting(f"{tokens} tokens"):
                    self._put(f"request_us_{tokens}", await measure.per_request(deployment, texts(count, tokens)))
        for clients in CLIENTS:
            with self._noting(f"{clients} clients, 1 token"):
                ones = await measure.saturated(deployment, texts(TEXTS, SHORT), clients, 1, extent.seconds)
                self._put(f"req_s_{clients}", ones.requests_per_s)
                for at in ones.ttft_ms if clients == CLIENTS[0] else []:
                    self._put(f"ttft_{clients}", at)
            with self._noting(f"{clients} clients"):
                streams = await measure.saturated(
                    deployment, texts(TEXTS, SHORT), clients, STREAM_TOKENS, extent.seconds
                )
                self._put(f"tok_s_{clients}", streams.tokens_per_s)

    def _put(self, metric: str, value: float) -> None:
        self.results.put(self.deployment.name, metric, value)

    @contextmanager
    def _noting(self, what: str) -> Iterator[None]:
        """A measurement that failed is a note, and the next one is taken."""
        try:
            yield
        except measure.Failed as error:
            self.results.note(self.deployment.name, f"{what}: {error}")
