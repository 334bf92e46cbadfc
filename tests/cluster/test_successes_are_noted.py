"""Each success makes an engine READY and has its lane looked up; many at once cost one more look, not one each."""

from __future__ import annotations

import asyncio

import pytest
from scene import Scene, scene

from disagg.registry.records import State
from disagg.roles import Role

pytestmark = pytest.mark.usefixtures("quick")

ALONE = "aggregated-0"


class Lane:
    """Answers when it is let."""

    def __init__(self, s: Scene, engine_id: str = ALONE) -> None:
        self.asked = 0
        self.answer = asyncio.Event()
        s.nodes[engine_id].lane = self.lane  # type: ignore[method-assign]

    async def lane(self) -> str:
        self.asked += 1
        await self.answer.wait()
        return f"lane {self.asked}"


async def test_of_many_successes_the_last_one_is_looked_at() -> None:
    async with scene(Role.AGGREGATED) as s:
        lane = Lane(s)
        noting = [asyncio.create_task(s.supervisors[ALONE].proven()) for _ in range(50)]
        await s.until(lambda: lane.asked == 1)
        lane.answer.set()
        await asyncio.gather(*noting)
        assert lane.asked == 2
        assert s.record(ALONE).lane == "lane 2"


async def test_a_new_incarnation_is_ready_though_the_lane_of_the_last_one_was_still_being_looked_up() -> None:
    async with scene(Role.AGGREGATED) as s:
        lane = Lane(s)
        noting = asyncio.create_task(s.supervisors[ALONE].proven())
        await s.until(lambda: lane.asked == 1)
        await s.nodes[ALONE].die("killed by SIGKILL")
        await s.until_ready(ALONE, 2)
        lane.answer.set()
        await noting
        assert s.record(ALONE).lane == "lane 2"


async def test_an_engine_is_ready_though_its_peers_actor_does_not_answer() -> None:
    async with scene(Role.PREFILL, Role.DECODE) as s:
        lane = Lane(s, "prefill-0")
        await s.nodes["decode-0"].die("killed by SIGKILL")
        await s.until_ready("decode-0", 2)
        await s.until(lambda: lane.asked == 1)
        s.supervisors["prefill-0"].sick("it hangs")
        await s.until_seen("prefill-0", State.DEAD)
        lane.answer.set()
        await s.until_ready("prefill-0", 2)


@pytest.mark.parametrize("how", ["sick", "died", "drained"])
async def test_who_does_not_serve_has_met_nobody(how: str) -> None:
    async with scene(Role.PREFILL, Role.DECODE) as s:
        assert s.met_with("decode-0") == {"prefill-0#1"}
        node = s.nodes["decode-0"]
        match how:
            case "sick":
                s.supervisors["decode-0"].sick("it hangs")
            case "died":
                await node.die("killed by SIGKILL")
            case "drained":
                await s.supervisors["decode-0"].drain(restart=False)
        until = State.QUARANTINED if how == "sick" else State.DEAD
        await s.until_seen("decode-0", until)
        await s.until(lambda: ("prefill-0#1", "decode-0#1") not in s.registry.met)
