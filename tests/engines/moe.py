"""Tiny mixture-of-experts models for tests of real engines: their shapes, and what an engine alone answers."""

from __future__ import annotations

import asyncio
import contextlib

from hosts import Host, leg, nursery

from disagg.registry.records import Role

KINDS = ("dsv3", "qwen3moe")
EXPERTS_APART = {"tp_size": 2, "ep_size": 2}
ATTENTION_APART = {"tp_size": 2, "dp_size": 2, "enable_dp_attention": True}
PAGE = 16

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

    with nursery() as zygote, contextlib.ExitStack() as until_closed:
        hosts = {
            model: until_closed.enter_context(
                contextlib.closing(Host(zygote, Role.AGGREGATED, model, page_size=PAGE, max_total_tokens=4096))
            )
            for model in models
        }
        return {model: asyncio.run(ask(host.wait_until_ready())) for model, host in hosts.items()}
