"""Sick or dead: quarantined at once, ended, started again as a new incarnation on new ports, READY once proven."""

from __future__ import annotations

import asyncio
import dataclasses
import time

import pytest
from scene import SETTING, begin_request, scene

from disagg.cluster.engine_node import NodeLost
from disagg.errors import StartError
from disagg.registry.records import State
from disagg.roles import Role

pytestmark = pytest.mark.usefixtures("quick")

PAIR = (Role.PREFILL, Role.DECODE)


async def test_a_sick_rank_costs_the_incarnation_and_the_next_one_serves() -> None:
    async with scene(*PAIR) as s:
        before, node = s.record("decode-0"), s.nodes["decode-0"]
        node.engine.sick = "no step for 6 s"
        quarantined = await s.until_seen("decode-0", State.QUARANTINED)
        assert "no step for 6 s" in quarantined.detail
        assert ("prefill-0#1", "decode-0#1") not in s.registry.met
        after = await s.until_ready("decode-0", 2)
        assert s.states("decode-0")[-5:] == [
            (1, "ready"),
            (1, "quarantined"),
            (1, "dead"),
            (2, "starting"),
            (2, "ready"),
        ]
        assert node.log_of_calls == ["start decode-0#1", "end", "start decode-0#2"]
        assert after.plane != before.plane
        assert len(set(node.ports)) == 2
        assert s.met_with("decode-0") == {"prefill-0#1"}
        assert after.restarts == 1
        assert node.spares == 2, "one for each incarnation that was READY"
        assert list(after.start_s) == ["place", "ray", "engine", "bootstrap", "proving"]
        await s.until(lambda: s.nodes["prefill-0"].engine.dropped_peers == ["decode-0#1"])


async def test_a_restarted_prefill_has_another_bootstrap_address() -> None:
    async with scene(*PAIR) as s:
        before = s.record("prefill-0")
        s.bootstraps_dead.add(before.bootstrap)
        assert "bootstrap" in (await s.until_seen("prefill-0", State.QUARANTINED)).detail
        after = await s.until_ready("prefill-0", 2)
        assert after.bootstrap != before.bootstrap
        await s.until_ready("decode-0")
        assert s.met_with("decode-0") == {"prefill-0#2"}


async def test_it_is_not_ready_before_a_transfer_with_the_new_incarnation() -> None:
    async with scene(*PAIR) as s:
        s.nodes["prefill-0"].engine.hangs = True
        await s.nodes["decode-0"].die("killed by SIGKILL")
        await s.until(lambda: s.record("decode-0").incarnation == 2 and bool(s.record("decode-0").plane))
        await asyncio.sleep(0.2)
        assert s.record("decode-0").state is State.STARTING
        s.nodes["prefill-0"].engine.sick = "hangs"
        await s.until_ready("prefill-0", 2)
        await s.until_ready("decode-0", 2)
        assert s.met_with("decode-0") == {"prefill-0#2"}


async def test_of_a_dead_host_the_exit_status_is_told() -> None:
    async with scene(Role.AGGREGATED) as s:
        await s.nodes["aggregated-0"].die("killed by SIGKILL")
        assert (
            await s.until_seen("aggregated-0", State.DEAD)
        ).detail == "killed by SIGKILL\nIts last lines:\nthe last line"
        await s.until_ready("aggregated-0", 2)


async def test_a_cut_connection_to_a_host_that_lives_costs_nothing() -> None:
    async with scene(*PAIR) as s:
        live, server = s.live("decode-0"), s.nodes["decode-0"].server
        assert server is not None
        cut = live.client
        for session in list(server.sessions):
            assert session.connection is not None
            session.connection.close("cut")
        await s.until(lambda: live.client is not cut and live.client.is_open)
        assert s.record("decode-0").state is State.READY
        client = await s.client("decode-0")
        s.nodes["decode-0"].engine._free.clear()
        begin_request(client)
        await s.until(lambda: live.others_requests == 1)
        client.close()


async def test_a_lost_actor_is_no_end_of_the_deployment() -> None:
    async with scene(Role.AGGREGATED) as s:
        s.nodes["aggregated-0"].lost = True
        await s.nodes["aggregated-0"].die("its reaper vanished")
        await s.until_ready("aggregated-0", 3)


async def test_no_peer_is_tried_with_an_engine_whose_actor_was_lost_and_is_still_being_ended() -> None:
    """It would fail, and be put down to the peer, too."""
    async with scene(*PAIR) as s:
        live, node, is_ended = s.live("decode-0"), s.nodes["decode-0"], asyncio.Event()
        end = node.end

        async def slowly() -> None:
            await is_ended.wait()
            await end()

        node.end = slowly  # type: ignore[method-assign]
        assert node._exit is not None
        node._exit.set_exception(NodeLost("node", "the actor died"))
        await s.until_seen("decode-0", State.DEAD)
        assert live.life in s.prover.up
        assert live.is_retiring
        is_ended.set()
        await s.until_ready("decode-0", 2)


async def test_what_dies_before_it_was_ready_fails_the_deployment() -> None:
    async with scene(*PAIR) as s:
        s.add(Role.DECODE, SETTING)
        s.nodes["decode-1"].lost = True
        with pytest.raises(StartError, match="the actor died"):
            await s.until_ready("decode-1")


async def test_rounds_of_death_leave_no_tasks_connections_or_proofs() -> None:
    async with scene(*PAIR) as s:

        def held() -> tuple[int, int, int]:
            return len(asyncio.all_tasks()), len(s.prover.up), len(s.prover.met)

        before = held()
        for number in range(2, 5):
            await s.nodes["decode-0"].die("killed by SIGKILL")
            await s.until_ready("decode-0", number)
        await s.until(lambda: held() == before, 2)
        server = s.nodes["prefill-0"].server
        assert server is not None
        assert len(server.sessions) == 1
        assert len(s.prover._rooms) == 0


@pytest.mark.parametrize(("device", "waits"), [("cuda", True), ("cpu", False)])
async def test_on_a_gpu_the_successor_of_a_decode_engine_waits_for_its_memory(
    device: str, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prefill has it mapped until it was told, and a moment longer."""
    back_s = 0.4 if waits else 60.0  # who does not wait is there long before
    monkeypatch.setattr("decode.role.MEMORY_BACK_S", back_s)
    async with scene(*PAIR, setting=dataclasses.replace(SETTING, device=device)) as s:
        prefill, decode = s.nodes["prefill-0"], s.nodes["decode-0"]
        await decode.die("killed by SIGKILL")
        await s.until(lambda: prefill.engine.dropped_peers == ["decode-0#1"])
        told_s = time.monotonic()
        await s.until(lambda: "start decode-0#2" in decode.log_of_calls)
        assert not waits or time.monotonic() - told_s > 0.3
        monkeypatch.setattr("decode.role.MEMORY_BACK_S", 60.0)
        await prefill.die("killed by SIGKILL")  # nobody has its memory mapped
        await s.until(lambda: "start prefill-0#2" in prefill.log_of_calls)
