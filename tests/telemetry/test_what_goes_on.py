"""The line that a frontend's log has every few seconds: counts, rates, first tokens; nothing where nothing went on."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from disagg.coordinator.phases import Phase
from disagg.coordinator.request import Request
from disagg.telemetry.pulse import Pulse


class Scene:
    def __init__(self) -> None:
        self.now_s = 100.0
        self.live: dict[str, Request] = {}
        self.pulse = Pulse("frontend 0", self.live, lambda: 1, lambda: self.now_s)

    def request(self, name: str, prompt: int, phase: Phase, tokens: int = 0, first_s: float | None = None) -> Request:
        text: Any = None  # nobody reads it
        request = Request(name, [7] * prompt, {}, max_tokens=999, text=text, received_at_s=self.now_s)
        request.phase = phase
        request.emitted_ids += [7] * tokens
        if first_s is not None:
            request.timeline["first_token"] = self.now_s + first_s
        return request


def test_what_ended_and_what_lives() -> None:
    scene = Scene()
    for number in range(1, 11):
        scene.pulse.ended(scene.request(str(number), 100, Phase.FINISHED, 20, number / 10))
    scene.pulse.ended(scene.request("failed", 50, Phase.FAILED))
    scene.pulse.ended(scene.request("left", 50, Phase.CANCELLED, 5, 0.1))
    scene.live["long"] = scene.request("long", 1000, Phase.DECODING, 95)
    scene.now_s += 10
    assert scene.pulse.line() == (
        "in 10 s 10 answers, 1 failed, 1 cancelled; 110 tokens/s read, 30 made; first token p50 0.5 s, p99 1 s; "
        "now 0 run, 1 wait"
    )


def test_a_stream_counts_while_it_runs_and_only_once() -> None:
    scene = Scene()
    stream = scene.live["long"] = scene.request("long", 1000, Phase.DECODING, 100)
    scene.now_s += 10
    assert "10 made" in scene.pulse.line()
    stream.emitted_ids += [7] * 50
    del scene.live["long"]
    stream.phase = Phase.FINISHED
    scene.pulse.ended(stream)
    scene.now_s += 10
    assert "1 answers; 100 tokens/s read, 5 made" in scene.pulse.line()


def test_where_nothing_goes_on_nothing_is_said() -> None:
    scene = Scene()
    scene.now_s += 10
    assert scene.pulse.line() == ""
    scene.live["waits"] = scene.request("waits", 10, Phase.QUEUED)
    scene.now_s += 10
    assert scene.pulse.line()


async def test_it_comes_again_and_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    scene = Scene()
    scene.live["waits"] = scene.request("waits", 10, Phase.QUEUED)
    scene.now_s += 1
    beating = asyncio.create_task(scene.pulse.beat(0.01))
    async with asyncio.timeout(30):
        while len(caplog.messages) < 3:
            scene.now_s += 1
            await asyncio.sleep(0.01)
    beating.cancel()
