"""Tiny mixture-of-experts models for tests of real engines: their shapes, what an engine alone answers, and requests
that come to all four pairs of two ranks a role.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, NamedTuple

from deployment import Deployment
from hosts import Host, agent, leg
from streams import wait_until

from disagg.roles import Role

KINDS = ("dsv3", "qwen3moe")
EXPERTS_APART = {"tp_size": 2, "ep_size": 2}
ATTENTION_APART = {"tp_size": 2, "dp_size": 2, "enable_dp_attention": True}
PAGE = 16
NEW_TOKENS = 16
PLACED_S = 60.0

Asked = tuple[list[int], int]  # prompt ids, new tokens


def prompt(tokens: int, first: int) -> list[int]:
    """Prompts of different `first` have no prefix in common."""
    return [first, *(1000 + (7919 * (first + at)) % 40_000 for at in range(1, tokens))]


def aggregated_answers(models: list[str], asked: list[Asked]) -> dict[str, list[list[int]]]:
    """Greedy tokens of one engine with one rank, by model."""

    async def ask(host: Host) -> list[list[int]]:
        async with host.client() as client:
            legs = [leg(client, prompt_ids, new_tokens) for prompt_ids, new_tokens in asked]
            for each in legs:
                assert (await each.until_end(60)).reason == "length"
            return [each.token_ids for each in legs]

    with agent() as zygote, contextlib.ExitStack() as until_closed:
        hosts = {
            model: until_closed.enter_context(
                contextlib.closing(Host(zygote, Role.AGGREGATED, model, page_size=PAGE, max_total_tokens=4096))
            )
            for model in models
        }
        return {model: asyncio.run(ask(host.wait_until_ready())) for model, host in hosts.items()}


# Opened one after the other and held, these come to all four pairs of ranks: the second has the shorter prompt and the
# longer answer, so the third finds room sooner beside it on prefill and beside the first on decode.
FOUR_PAIRS: list[Asked] = [
    (prompt(128, 1), NEW_TOKENS),
    (prompt(32, 2), 160),
    (prompt(48, 3), NEW_TOKENS),
    (prompt(64, 4), NEW_TOKENS),
]


class Way(NamedTuple):
    """Where one request ran: an engine's incarnation and a dp rank of it, for both legs."""

    prefill: tuple[str, int]
    decode: tuple[str, int]


def answer(deployment: Deployment, model: str, asked: Asked) -> list[int]:
    prompt_ids, new_tokens = asked
    answered = deployment.complete(
        prompt_ids, model=model, max_tokens=new_tokens, ignore_eos=True, return_token_ids=True
    )
    ids: list[int] = answered["choices"][0]["token_ids"]
    return ids


def way_of(deployment: Deployment, prompt_tokens: int) -> Way:
    """Of the live request with a prompt of so many tokens, once it has been dispatched."""
    found: list[dict[str, Any]] = []

    def is_placed() -> bool:
        live = [
            deployment.get(f"/disagg/requests/{r['id']}") for r in deployment.get("/disagg/status")["frontend"]["live"]
        ]
        found[:] = [r for r in live if r["usage"]["prompt_tokens"] == prompt_tokens and "decode" in r]
        return bool(found)

    wait_until(is_placed, PLACED_S)
    places = [found[0][leg].rsplit("/", 1) for leg in ("prefill", "decode")]
    prefill, decode = ((life, int(rank)) for life, rank in places)
    return Way(prefill, decode)
