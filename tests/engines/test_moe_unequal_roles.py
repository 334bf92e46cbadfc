"""Other tp and dp on prefill than on decode: each pair of ranks gives one engine's tokens."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hosts import ADDRESS, Host, LegLog, agent, leg
from moe import ATTENTION_APART, PAGE, Asked, prompt

from disagg.models.tiny import make_tiny
from disagg.plane import messages as m
from disagg.plane.client import PlaneClient
from disagg.roles import Role

ASKED: list[Asked] = [(prompt(tokens, 200 + tokens), 16) for tokens in (16, 33, 300)]
END_S = 60.0
ONE_RANK: dict[str, Any] = {}
HEADS_APART = {"tp_size": 2}  # two ranks share one attention


@pytest.fixture(scope="module")
def hosts() -> Iterator[dict[str, Host]]:
    """A model with latent attention: each rank has the whole of its KV, whatever its tp."""
    model = str(make_tiny("dsv3"))
    shapes: list[tuple[str, Role, dict[str, Any]]] = [
        ("aggregated", Role.AGGREGATED, ONE_RANK),
        ("prefill tp 1", Role.PREFILL, ONE_RANK),
        ("prefill tp 2 dp 2", Role.PREFILL, ATTENTION_APART),
        ("decode tp 1", Role.DECODE, ONE_RANK),
        ("decode tp 2", Role.DECODE, HEADS_APART),
        ("decode tp 2 dp 2", Role.DECODE, ATTENTION_APART),
    ]
    with agent() as zygote, contextlib.ExitStack() as until_closed:
        started = {}
        for name, role, shape in shapes:
            host = Host(zygote, role, model, page_size=PAGE, **shape)
            started[name] = until_closed.enter_context(contextlib.closing(host))
        yield {name: host.wait_until_ready() for name, host in started.items()}


@pytest.mark.parametrize(
    ("prefill", "decode"),
    [
        ("prefill tp 2 dp 2", "decode tp 1"),
        ("prefill tp 2 dp 2", "decode tp 2"),
        ("prefill tp 1", "decode tp 2 dp 2"),
        ("prefill tp 1", "decode tp 2"),
    ],
)
async def test_each_pair_of_ranks_gives_the_aggregated_engines_tokens(
    hosts: dict[str, Host], prefill: str, decode: str
) -> None:
    sender, receiver = hosts[prefill], hosts[decode]
    async with (
        hosts["aggregated"].client() as alone,
        sender.client() as to_sender,
        receiver.client() as to_receiver,
    ):
        want = await _tokens([leg(alone, *asked) for asked in ASKED])
        for p in range(sender.facts["ranks"]):
            for d in range(receiver.facts["ranks"]):
                both = [_legs(to_sender, to_receiver, asked, _meet(sender, p), d) for asked in ASKED]
                assert await _tokens([answer for _, answer in both]) == want, f"{prefill} rank {p}, {decode} rank {d}"
                for prompt_leg, _ in both:
                    assert (await prompt_leg.until_end(END_S)).stats["kv_bytes"] > 0


def _meet(prefill: Host, dp_rank: int) -> m.Bootstrap:
    ranks = prefill.facts["ranks"]
    room = (random.getrandbits(60) + 1) * ranks + dp_rank
    return m.Bootstrap(ADDRESS, prefill.bootstrap_port, room, dp_rank)


def _legs(
    prefill: PlaneClient, decode: PlaneClient, asked: Asked, meet: m.Bootstrap, decode_dp_rank: int
) -> tuple[LegLog, LegLog]:
    prompt_ids, new_tokens = asked
    return leg(prefill, prompt_ids, 1, meet, meet.prefill_dp_rank), leg(
        decode, prompt_ids, new_tokens, meet, decode_dp_rank
    )


async def _tokens(legs: list[LegLog]) -> list[list[int]]:
    for each in legs:
        end = await each.until_end(END_S)
        assert end.reason == "length", end.detail
    return [each.token_ids for each in legs]
