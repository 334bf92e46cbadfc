"""What the preflight is for: with it off, real engines start well with these mistakes, and die of the first request.

More of them are put to SGLang's code without engines: tests/preflight/test_sglang_fails_later.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterator

import pytest
from hosts import ADDRESS, Host, NodeAgent, agent, fresh_prompt, leg

from disagg.plane import messages as m
from disagg.roles import Role

DEAD_S = 60.0
HUNG_S = 3.0


@pytest.fixture(scope="module")
def zygote() -> Iterator[NodeAgent]:
    with agent() as made:
        yield made


@pytest.fixture(scope="module")
def prefill(zygote: NodeAgent) -> Iterator[Host]:
    with contextlib.closing(Host(zygote, Role.PREFILL, page_size=16, chunked_prefill_size=256)) as host:
        yield host.wait_until_ready()


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ({"page_size": 32}, "Page size mismatch"),
        ({"page_size": 16, "kv_cache_dtype": "bfloat16"}, "KV cache dtype mismatch"),
    ],
)
def test_the_decode_engine_dies_on_its_first_request_and_prefill_waits(
    zygote: NodeAgent, prefill: Host, mistake: dict[str, object], said: str
) -> None:
    async def scenario(decode: Host) -> None:
        bootstrap = m.Bootstrap(ADDRESS, prefill.bootstrap_port, random.getrandbits(62) + 1, 0)

        async with prefill.client() as prefills, decode.client() as decodes:
            prompt = fresh_prompt(64)
            waits = leg(prefills, prompt, 1, bootstrap)
            dies = leg(decodes, prompt, 4, bootstrap)
            assert (await dies.until_end(DEAD_S)).reason == "lost"
            assert said in decode.log.read_text(errors="replace")
            await asyncio.sleep(HUNG_S)
            assert waits.end is None, "prefill was told"
            waits.abort()
            await waits.until_end()

    with contextlib.closing(Host(zygote, Role.DECODE, **mistake)) as decode:
        decode.wait_until_ready()
        asyncio.run(scenario(decode))


def test_with_another_dtype_the_decode_leg_hangs(zygote: NodeAgent, prefill: Host) -> None:
    """SGLang compares what kv_cache_dtype says, which is `auto` on both sides."""

    async def scenario(decode: Host) -> None:
        bootstrap = m.Bootstrap(ADDRESS, prefill.bootstrap_port, random.getrandbits(62) + 1, 0)
        async with prefill.client() as prefills, decode.client() as decodes:
            prompt = fresh_prompt(64)
            prefilled, hangs = leg(prefills, prompt, 1, bootstrap), leg(decodes, prompt, 4, bootstrap)
            await hangs.until(lambda leg: "transferring" in leg.stages)
            await asyncio.sleep(2 * HUNG_S)
            assert (hangs.end, hangs.token_ids) == (None, [])
            for each in (prefilled, hangs):
                each.abort()
                await each.until_end()

    with contextlib.closing(Host(zygote, Role.DECODE, page_size=16, dtype="bfloat16")) as decode:
        decode.wait_until_ready()
        asyncio.run(scenario(decode))
