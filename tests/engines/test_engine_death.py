"""An engine is SIGKILLed under a request: the client hears of it at once, the engine comes back, nothing is left."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest
from deployment import Deployment, Traces, serving

TOLD_S = 2.0
BACK_S = 15.0
ROUNDS = 5
GROWTH_MIB = 25.0


@pytest.fixture(scope="module")
def pair() -> Iterator[Deployment]:
    once = ("routing.retry_limit=0", "routing.migration_limit=0")  # what a lost leg means, without another try
    with serving("configs/local-cpu.yaml", "ray.address=local", *once) as deployment:
        yield deployment


class _Stream(threading.Thread):
    """A streaming completion; keeps its events and when each came."""

    def __init__(self, deployment: Deployment, prompt: list[int], max_tokens: int) -> None:
        super().__init__(daemon=True)
        self._url = f"{deployment.url}/v1/completions"
        self._body = {
            "model": "smollm2",
            "prompt": prompt,
            "max_tokens": max_tokens,
            "stream": True,
            "ignore_eos": True,
        }
        self.events: list[tuple[float, dict[str, object]]] = []
        self.status = 0
        self.failure = ""
        self.start()

    def run(self) -> None:
        try:
            with httpx.stream("POST", self._url, json=self._body, timeout=60, trust_env=False) as answer:
                self.status = answer.status_code
                if self.status != 200:
                    self.events.append((time.monotonic(), json.loads(answer.read())))
                for line in answer.iter_lines():
                    if line.startswith("data: {"):
                        self.events.append((time.monotonic(), json.loads(line.removeprefix("data: "))))
        except httpx.HTTPError as error:
            self.failure = repr(error)

    @property
    def error(self) -> dict[str, object] | None:
        return next((e["error"] for _, e in self.events if "error" in e), None)  # type: ignore[misc]


def _kill(deployment: Deployment, engine_id: str, whom: str) -> float:
    pid = deployment.engine(engine_id)["pids"][whom]
    os.kill(pid[0] if isinstance(pid, list) else pid, signal.SIGKILL)
    return time.monotonic()


def _assert_told(stream: _Stream, killed_at: float) -> None:
    stream.join(TOLD_S + 3)
    assert not stream.is_alive(), "the stream hangs"
    assert stream.error, f"no error event: {stream.status} {stream.failure} {stream.events[-2:]}"
    assert stream.error["code"] == "leg_lost"
    assert stream.events[-1][0] - killed_at < TOLD_S


def _assert_back(deployment: Deployment, engine_id: str, incarnation: int) -> None:
    def is_back() -> bool:
        engine = deployment.engine(engine_id)
        return bool(engine["incarnation"] > incarnation and engine["state"] == "ready") and deployment.is_ready()

    deployment.wait_until(is_back, BACK_S)
    answer = deployment.complete("The capital of France is", max_tokens=4)
    assert "Paris" in answer["choices"][0]["text"]
    assert deployment.timeline(answer["request_id"])["kv_bytes"] > 0


@pytest.mark.parametrize("whom", ["host", "schedulers", "actor"])
def test_decode_killed_mid_stream(pair: Deployment, whom: str) -> None:
    before = pair.engine("decode-0")
    stream = _Stream(pair, [*range(1000, 1040)], 400)
    pair.wait_until(lambda: len(stream.events) >= 5, 30)
    _assert_told(stream, _kill(pair, "decode-0", whom))
    _assert_back(pair, "decode-0", before["incarnation"])
    assert pair.engine("decode-0")["bootstrap"] == ""


@pytest.mark.parametrize("whom", ["host", "schedulers"])
def test_prefill_killed_during_a_long_prefill(pair: Deployment, whom: str) -> None:
    before = pair.engine("prefill-0")
    stream = _Stream(pair, [int(time.time()) % 999 + 1, *range(1000, 4000)], 8)
    pair.wait_until(lambda: pair.engine("prefill-0")["in_flight"] == 1, 5)
    time.sleep(1.5)
    assert not stream.events, "the prompt is too short for this test"
    _assert_told(stream, _kill(pair, "prefill-0", whom))
    _assert_back(pair, "prefill-0", before["incarnation"])
    assert pair.engine("prefill-0")["bootstrap"] != before["bootstrap"], "a bootstrap address was used again"


def test_five_rounds_leave_nothing(pair: Deployment) -> None:
    def processes() -> int:
        return len(psutil.Process(pair.process.pid).children(recursive=True)) + len(Traces.now().processes)

    def memory_mib() -> float:
        """Of what outlives engines: driver and frontend."""
        frontend = psutil.Process(pair.get("/disagg/status")["frontend"]["pid"])
        return float(sum(p.memory_info().rss for p in (frontend, psutil.Process(pair.process.pid))) / 2**20)

    def one_round(number: int) -> None:
        engine_id = ("decode-0", "prefill-0")[number % 2]
        before = pair.engine(engine_id)
        stream = _Stream(pair, [*range(1000 + number, 1040)], 200)
        pair.wait_until(lambda: len(stream.events) >= 2, 30)
        _assert_told_or_done(stream, _kill(pair, engine_id, "host"))
        _assert_back(pair, engine_id, before["incarnation"])

    one_round(0)
    one_round(1)
    count, ports, before_mib = processes(), len(Traces.now().ports), memory_mib()
    for number in range(ROUNDS):
        one_round(number)
    pair.wait_until(lambda: processes() <= count, 10)
    pair.wait_until(lambda: len(Traces.now().ports) <= ports, 10)
    frontend = pair.get("/disagg/status")["frontend"]
    held = {name: frontend[name] for name in ("requests", "queued", "attempts", "rooms", "places")}
    assert not any(held.values()), held
    assert memory_mib() - before_mib < GROWTH_MIB


def _assert_told_or_done(stream: _Stream, killed_at: float) -> None:
    """A prefill engine's death does not end a stream that decodes already."""
    if stream.error is None and stream.is_alive():
        stream.join(30)
    if stream.error is not None:
        _assert_told(stream, killed_at)
    assert not stream.is_alive()
