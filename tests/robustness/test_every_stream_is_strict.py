"""Every kind of answer that there is, streamed and whole, to its end, a deadline, a cancellation: each byte of it is
its API's, and both say the same."""

from __future__ import annotations

import asyncio

import pytest
from feature_asks import TOKENS, ask, assert_is_cut, assert_is_wanted, in_a_world, read
from features import FEATURES
from http_world import HttpWorld
from strictly import Asked, read_stream

from disagg.coordinator.limits import Limits
from disagg.roles import Role
from tests.frontend.reading import needs_sglang

pytestmark = needs_sglang
DEADLINES = Limits(next_token_s=1.0, retry_limit=0, migration_limit=0)


@pytest.mark.parametrize("in_hosts", [False, True], ids=["", "hosts have the tokenizer"])
def test_to_its_end(in_hosts: bool) -> None:
    """The world outlives them all, and holds nothing at its end."""

    async def scenario(world: HttpWorld) -> None:
        for name, feature in FEATURES.items():
            found = []
            for is_stream in (True, False):
                said = read(feature, await ask(world, feature, is_stream=is_stream).answer(), is_stream=is_stream)
                assert_is_wanted(feature, said, (name, is_stream))
                found.append(said)
            streamed, whole = found
            tokens = sum(len(request.emitted_ids) for request in world.service.begun)
            assert whole.output_tokens == tokens == (feature.tokens or tokens), name
            assert streamed.output_tokens in (None, tokens), name
            assert (streamed.output_tokens is None) == (
                feature.api in ("chat", "text") and not feature.asked.include_usage
            ), name
            for index, choice in streamed.choices.items():
                assert choice.logprobs == whole.choices[index].logprobs, name
                assert len(choice.logprobs) == (
                    len(world.service.begun[index].emitted_ids) if feature.asked.logprobs else 0
                )

    in_a_world(scenario, in_hosts=in_hosts)


@pytest.mark.parametrize("is_stream", [True, False], ids=["stream", "whole"])
def test_to_a_cancellation(is_stream: bool) -> None:
    async def scenario(world: HttpWorld) -> None:
        for feature in FEATURES.values():
            talk = ask(world, feature, is_stream=is_stream)
            await world.until_tokens(TOKENS)
            world.cancel()
            assert_is_cut(feature, await talk.answer(), 499, "cancelled", is_stream=is_stream)

    in_a_world(scenario)


@pytest.mark.parametrize("is_stream", [True, False], ids=["stream", "whole"])
def test_to_a_deadline(is_stream: bool) -> None:
    async def scenario(world: HttpWorld) -> None:
        for feature in FEATURES.values():
            talk = ask(world, feature, is_stream=is_stream)
            await world.until_tokens(TOKENS)
            hosts = [host for host in world.sim.hosts.values() if host.role is Role.DECODE]
            for host in hosts:
                host.engine.freeze()
            assert_is_cut(feature, await talk.answer(), 504, "deadline_exceeded", is_stream=is_stream)
            for host in hosts:
                host.engine.thaw()

    in_a_world(scenario, DEADLINES)


def test_a_client_that_leaves_takes_all_with_it() -> None:
    async def scenario(world: HttpWorld) -> None:
        for feature in FEATURES.values():
            for is_stream in (True, False):
                talk = ask(world, feature, is_stream=is_stream)
                await world.until_tokens(TOKENS)
                talk.leave()
                await asyncio.sleep(0.5)
                assert not world.coordinator.live, feature

    in_a_world(scenario)


def _spoiled(data: bytes, named: bool) -> dict[str, bytes]:
    """One thing wrong in each."""
    blocks = data[:-2].split(b"\n\n")
    said = {
        "the first is missing": blocks[1:],
        "the last is missing": blocks[:-1],
        "the first comes twice": [blocks[0], *blocks],
        "the last comes twice": [*blocks, blocks[-1]],
        "the first two are the other way round": [blocks[1], blocks[0], *blocks[2:]],
        "a blank is missing": [blocks[0] + b"\n" + blocks[1], *blocks[2:]],
        "a carriage return": [blocks[0] + b"\r", *blocks[1:]],
        "a comment": [b":", *blocks],
        "a NaN": [blocks[0][:-1] + b',"x":NaN}', *blocks[1:]],
        "a name twice": [blocks[0][:-1] + b',"x":1,"x":1}', *blocks[1:]],
        "no UTF-8": [blocks[0][:-1] + b',"x":"\xff"}', *blocks[1:]],
        "another choice": [each.replace(b'"index":0', b'"index":7') for each in blocks],
    }
    if not named:  # each event stands for itself
        del said["the first is missing"], said["the first two are the other way round"], said["the first comes twice"]
    return {what: b"\n\n".join(each) + b"\n\n" for what, each in said.items()}


def _is_refused(api: str, data: bytes, asked: Asked) -> bool:
    try:
        read_stream(api, data, asked)
    except (AssertionError, ValueError, LookupError):
        return True
    return False


def test_the_reader_forgives_nothing() -> None:
    async def scenario(world: HttpWorld) -> None:
        for name in ("chat, usage", "text, usage", "generate", "responses", "messages"):
            feature = FEATURES[name]
            data = (await ask(world, feature, is_stream=True).answer()).body
            read_stream(feature.api, data, feature.asked)
            for what, spoiled in _spoiled(data, named=feature.api not in ("text", "generate")).items():
                if what == "another choice" and feature.api == "responses":
                    continue
                assert _is_refused(feature.api, spoiled, feature.asked), (name, what)
            assert _is_refused(feature.api, data, Asked(2, include_usage=feature.asked.include_usage)), name

    in_a_world(scenario)
