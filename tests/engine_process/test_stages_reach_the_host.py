"""A scheduler's word about a leg's stage reaches the host's loop, and never holds the scheduler up."""

from __future__ import annotations

import asyncio
from pathlib import Path

from disagg.sglang.stages import StageListener, endpoint, say


async def test_stages_arrive_in_order(tmp_path: Path) -> None:
    heard: list[tuple[str, str, int | None]] = []
    listener = StageListener(tmp_path)
    ours = endpoint(tmp_path)
    listener.listen(asyncio.get_running_loop(), lambda *stage: heard.append(stage))
    say(ours, "a" * 34, "bootstrapping")
    say(ours, "a" * 34, "prefilling")
    say(ours, "a" * 34, "transferring", 0)
    async with asyncio.timeout(30):
        while len(heard) < 3:
            await asyncio.sleep(0)
    assert heard == [("a" * 34, "bootstrapping", None), ("a" * 34, "prefilling", None), ("a" * 34, "transferring", 0)]
    ours.close()
    listener.close()


def test_a_host_that_does_not_listen_costs_a_scheduler_nothing(tmp_path: Path) -> None:
    listener = StageListener(tmp_path)
    ours = endpoint(tmp_path)
    for _ in range(10_000):  # many more than the socket holds: a endpoint that waited would never come to the end
        say(ours, "a" * 34, "prefilling")
    listener.close()
    say(ours, "a" * 34, "transferring")
    ours.close()
