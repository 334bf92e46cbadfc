"""A feature asked of a world, and what its answer has to be: as wanted, or cut with an error."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from features import Feature
from http_world import HttpWorld, Talk, http_world
from scripted import Answer
from strictly import Said, json_of, read_error, read_stream, read_whole

from disagg.coordinator.limits import Limits
from disagg.simulation.loop import VirtualLoop

TOKENS = 20  # when an answer is disturbed: within its characters, calls and marks


def in_a_world(scenario: Callable[[HttpWorld], Awaitable[None]], limits: Limits | None = None, **model: Any) -> None:
    async def run() -> None:
        async with http_world(limits, **model) as world:
            await scenario(world)

    log = logging.getLogger("disagg")
    before = log.level
    log.setLevel(logging.CRITICAL)  # every fault is a warning to somebody
    try:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(run())
    finally:
        log.setLevel(before)


def ask(world: HttpWorld, feature: Feature, *, is_stream: bool) -> Talk:
    return world.post(feature.api, feature.body_of(is_stream=is_stream), feature.says, parses=feature.parses)


def read(feature: Feature, answer: Answer, *, is_stream: bool) -> Said:
    """Of a 200."""
    assert answer.status == 200, answer.body
    kind = "text/event-stream; charset=utf-8" if is_stream else "application/json"
    assert answer.headers["content-type"] == kind
    return (read_stream if is_stream else read_whole)(feature.api, answer.body, feature.asked)


def assert_is_wanted(feature: Feature, said: Said, where: object) -> None:
    assert said.error is None, where
    for index, choice in said.choices.items():
        wants = feature.wanted(index)
        calls = [(name, json_of(arguments)) for name, arguments in choice.calls]
        found = choice.text, choice.reasoning, calls, choice.finish_reason
        wanted_calls = [(name, json_of(arguments)) for name, arguments in wants.calls]
        assert found == (wants.text, wants.reasoning, wanted_calls, wants.finish_reason), (where, index)


def assert_is_cut(feature: Feature, answer: Answer, status: int, code: str, *, is_stream: bool) -> None:
    """What came before the error is the beginning of what was wanted."""
    if not is_stream or answer.status != 200:
        error = read_error(feature.api, answer.body)
        assert answer.status == status
    else:
        said = read(feature, answer, is_stream=True)
        error = said.error or {}
        assert error["message"]
        for index, choice in said.choices.items():
            wants = feature.wanted(index)
            assert not choice.finish_reason or choice.finish_reason == wants.finish_reason, "some samples had ended"
            assert wants.text.startswith(choice.text), (choice.text, wants.text)
            assert wants.reasoning.startswith(choice.reasoning)
            assert len(choice.calls) <= len(wants.calls)
    if feature.api not in ("responses", "messages"):  # their own words are fewer
        assert error["code"] == code
