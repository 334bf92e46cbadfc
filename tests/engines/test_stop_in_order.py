"""SIGTERM: no new connection, what runs ends (longer than Ray's own handler would let it), then it ends well."""

from __future__ import annotations

import json
import signal
import threading
import time

import httpx
import pytest
from deployment import Deployment, serving

TOKENS = 60
STEP_S = 0.1  # of simulated engines: on any machine the stream has 6 s to go, and Ray's own handler leaves it 3


def _stream(deployment: Deployment, finishes: list[str], events: list[float]) -> None:
    body = {"model": "smollm2", "prompt": "Once", "max_tokens": TOKENS, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", f"{deployment.url}/v1/completions", json=body, timeout=60, trust_env=False) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                events.append(time.monotonic())
                event = json.loads(line.removeprefix("data: "))
                finishes.append(str(event["error"] if "error" in event else event["choices"][0].get("finish_reason")))


def test_a_stream_outlives_sigterm_and_its_client_sees_nothing() -> None:
    sets = ("ray.address=local", "deadlines.stop_s=60", f"decode.engine.step_s={STEP_S}")
    with serving("configs/simulated.yaml", *sets) as deployment:
        finishes: list[str] = []
        events: list[float] = []
        client = threading.Thread(target=_stream, args=(deployment, finishes, events), daemon=True)
        client.start()
        deployment.wait_until(lambda: len(events) >= 2, 30)
        deployment.process.send_signal(signal.SIGTERM)
        asked_at = time.monotonic()
        deployment.wait_until(lambda: not deployment.answers(), 30)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{deployment.url}/health", timeout=2, trust_env=False)
        client.join(60)
        assert finishes[-1] == "length"
        assert events[-1] - asked_at > 3.0, "too short to prove anything"
        assert deployment.process.wait(30) == 0
