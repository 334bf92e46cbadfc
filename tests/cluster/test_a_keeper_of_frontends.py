"""The actor beside a detached deployment's frontends, without Ray: whoever waits for news hears of its end."""

from __future__ import annotations

import asyncio

from disagg.cluster.detached.frontends import FrontendKeeper
from disagg.registry.memory import MemoryRegistry


class Frontends:
    async def stop(self) -> None: ...


async def test_who_waits_for_news_has_an_answer_when_it_stops() -> None:
    keeper = object.__new__(FrontendKeeper)  # its constructor asks Ray
    keeper._registry, keeper._frontends = MemoryRegistry(), Frontends()  # type: ignore[assignment]
    keeper._keeping = asyncio.create_task(asyncio.sleep(60))
    waiting = asyncio.create_task(keeper.frontends(keeper._registry.revision))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    await keeper.stop()
    async with asyncio.timeout(5):
        assert await waiting == (keeper._registry.revision, ())
