"""An engine is killed under each kind of answer, before its first token and after it, streamed and whole: its client
gets the answer that it would have got, or the error that docs/failures.md tells, and nothing is lost or left.

The same on real engines: tests/engines/test_streams_survive.py.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from feature_asks import TOKENS, ask, assert_is_cut, assert_is_wanted, in_a_world, read
from features import FEATURES, Feature
from http_world import HttpWorld

from disagg.coordinator.phases import Phase
from disagg.roles import Role
from tests.frontend.reading import needs_sglang

pytestmark = needs_sglang
PAGE = Path(__file__).parents[2] / "docs" / "failures.md"
UNDER = [
    "chat, n",
    "chat, n, logprobs",
    "chat, json_schema",
    "chat, tools",
    "chat, tools, n",
    "chat, tools required",
    "chat, reasoning, tools",
    "chat, penalty",
    "text, batch",
    "text, echo",
    "text, regex",
    "text, stop_regex",
    "generate, logprobs",
    "responses, json_schema",
    "responses, tools",
    "messages, tools",
]


async def strike(world: HttpWorld, victim: Role, phase: Phase) -> None:
    if phase is Phase.DECODING:
        await world.until_tokens(TOKENS)
    else:
        while not (begun := world.service.begun) or begun[0].phase is not phase:
            await asyncio.sleep(0.001)
    assert world.service.begun[0].phase is phase
    world.host(victim).kill()


async def one(world: HttpWorld, feature: Feature, victim: Role, phase: Phase, *, is_stream: bool) -> None:
    talk = ask(world, feature, is_stream=is_stream)
    await strike(world, victim, phase)
    answer, request = await talk.answer(), world.service.begun[0]
    is_lost = victim is Role.DECODE or phase is Phase.PREFILLING
    assert len(request.facts.lost_tries) == is_lost, request.facts
    if feature.stays and is_stream and is_lost and phase is Phase.DECODING:
        assert_is_cut(feature, answer, 502, "leg_lost", is_stream=True)
        assert feature.stays in (read(feature, answer, is_stream=True).error or {})["message"]
    else:
        assert_is_wanted(feature, read(feature, answer, is_stream=is_stream), (feature, victim, phase))
    await asyncio.sleep(2.0)
    await world.sim.settle()


@pytest.mark.parametrize("is_stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("phase", [Phase.PREFILLING, Phase.DECODING], ids=["prefilling", "decoding"])
@pytest.mark.parametrize("victim", [Role.PREFILL, Role.DECODE], ids=["prefill", "decode"])
def test_one_of_two_is_killed(victim: Role, phase: Phase, is_stream: bool) -> None:
    async def scenario(world: HttpWorld) -> None:
        for name in UNDER:
            await one(world, FEATURES[name], victim, phase, is_stream=is_stream)

    in_a_world(scenario, prefill_token_s=0.001)


def test_the_page_tells_each_of_them() -> None:
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if " (it " in line]
    told = {name: row for row in rows for name in row[0].split("; ")}
    assert told.keys() == set(UNDER)
    for name, (_, before, prefill, streamed, whole) in told.items():
        stays = bool(FEATURES[name].stays)
        assert (before, prefill) == ("the same (a retry)", "the same")
        assert streamed == ("error event `leg_lost`" if stays else "the same (it moves)"), name
        assert whole == f"the same (it {'begins anew' if stays else 'moves'})", name
