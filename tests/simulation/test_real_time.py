"""The same two engines in real time over TCP, as in `disagg serve configs/simulated.yaml`."""

from __future__ import annotations

import asyncio
import time

from disagg.roles import Role
from disagg.simulated_engine.engine import SimulatedEngine
from disagg.simulated_engine.model import Model
from disagg.simulated_engine.tokens import answer
from prefill.bootstrap import ranks_are_registered
from tests.simulation.pair import PROMPT, SimulatedPair, Sink


async def test_a_pair_meets_over_tcp_at_any_speed(unused_tcp_port: int) -> None:
    at = ("127.0.0.1", unused_tcp_port)
    engines = []
    for role in (Role.PREFILL, Role.DECODE):
        model = Model(role=role, speed=20)
        engines.append(SimulatedEngine(model, bootstrap=at if role is Role.PREFILL else None))
        engines[-1].start()
    assert not await ranks_are_registered(f"127.0.0.1:{unused_tcp_port}")  # nobody listens yet
    for engine in engines:
        await engine.open()
    assert not await ranks_are_registered(f"127.0.0.1:{unused_tcp_port}")  # 503: a rank is missing
    await asyncio.sleep(0.06)
    assert await ranks_are_registered(f"127.0.0.1:{unused_tcp_port}")
    pair = SimulatedPair(*engines, None)  # type: ignore[arg-type]
    from disagg.plane.engine import Leg
    from disagg.plane.messages import Bootstrap

    sinks = [Sink(), Sink()]
    for engine, sink, tokens in zip(engines, sinks, (1, 40), strict=True):
        sampling = {"max_new_tokens": tokens, "ignore_eos": True}
        engine.submit(Leg("leg", PROMPT, sampling, 0, Bootstrap(*at, 8, 0)), sink)
    began_s = time.monotonic()
    await pair.over(*sinks, limit_s=5)
    assert sinks[1].ids == answer(PROMPT, 40, ignore_eos=True)
    assert time.monotonic() - began_s < 0.5  # of 0.9 s at speed 1
    assert pair.holds_nothing()
    for engine in engines:
        engine.stop()
    await asyncio.sleep(0)
