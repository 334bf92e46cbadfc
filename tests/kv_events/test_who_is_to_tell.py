"""Which engines are to tell what they have cached, by their configuration; and of which it is not even guessed."""

from __future__ import annotations

import asyncio

import pytest

from disagg.cluster.engine_node import Ground
from disagg.cluster.setting import Setting, host_spec
from disagg.kv_events.blocks import BlockHasher
from disagg.load import parse_config
from disagg.planning.plan import Device, resolve
from disagg.policy_names import DEFAULT
from disagg.routing.connections import Connections
from disagg.routing.view import RoutingView
from disagg.simulation.loop import VirtualLoop
from disagg.simulation.world import BLOCK_TOKENS, SECRET, SimulatedDeployment
from tests.routing.engines import PickingRouter

HASHER = BlockHasher(SECRET, BLOCK_TOKENS)
POOLS = {
    "": ["prefill", "aggregated"],  # a decode engine has no prefix cache unless it is asked for
    "prefill: {engine: {disable_radix_cache: true}}": ["aggregated"],
    "aggregated: {engine: {disable_radix_cache: true}}": ["prefill"],
    "decode: {engine: {disaggregation_decode_enable_radix_cache: true}}": ["prefill", "decode", "aggregated"],
    "routing: {kv_events: false}": [],
    "routing: {policy: least_loaded}": [],
    "routing: {policy: {decode: session}}": ["prefill", "aggregated"],
}


@pytest.mark.parametrize("more", POOLS)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_engines_with_a_prefix_cache_are_to_tell_where_the_policy_asks_for_it(more: str, device: Device) -> None:
    assert DEFAULT == "predicted"
    plan = resolve(
        parse_config(f"""version: 1
model: {{path: m}}
{"" if more.startswith("prefill") else "prefill: {}"}
{"" if more.startswith("decode") else "decode: {}"}
{"" if more.startswith("aggregated") else "aggregated: {}"}
embedding: {{}}
{more}
"""),
        device,
    )
    block_tokens = plan.block_tokens if plan.tells_cache else 0
    setting = Setting("d", device, "m", "", plan.deadlines, [], "", block_tokens=block_tokens)
    ground = Ground("127.0.0.1", 20_000, fork=False)
    specs = [host_spec(engine, setting, 1, ground)[0] for engine in plan.engines]
    assert [spec.role for spec in specs if spec.block_tokens] == POOLS[more]


@pytest.mark.parametrize(("cache_block_tokens", "held"), [(64, 4), (0, 0)])
def test_an_engine_without_a_prefix_cache_is_not_believed_to_have_anything(cache_block_tokens: int, held: int) -> None:
    async def scenario() -> None:
        model = {"cache_block_tokens": cache_block_tokens}
        async with SimulatedDeployment(prefill=1, decode=1, seed=8, model=model, policy=DEFAULT) as sim:
            here, now_s = sim.network.at("guesser"), asyncio.get_running_loop().time
            guesser = Connections(SECRET, here, now_s, block_tokens=BLOCK_TOKENS, kv_events=False)
            following = asyncio.create_task(guesser.follow(sim.registry.watch()))
            while len(guesser.caches) < 2:
                await asyncio.sleep(0.01)
            ids = list(range(4 * BLOCK_TOKENS))
            view = RoutingView(prompt_tokens=len(ids), new_tokens=1, path=HASHER.path(ids))
            assert PickingRouter(guesser).pick(view) is not None
            assert sum(told.blocks for told in guesser.caches.values()) == held
            following.cancel()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(scenario())
