"""Simulated ranks behind the real admission, router and index."""

from __future__ import annotations

from array import array
from pathlib import Path

import pytest

from disagg.replay.measures import Measures, Slo
from disagg.replay.simulate import Setting, Simulation
from disagg.replay.traces.read import read_trace
from disagg.replay.traces.trace import Trace, TraceError, TraceRequest
from disagg.replay.virtual.served import Served
from disagg.replay.virtual.world import Pool, Run, World
from disagg.replay.workload import Sampler
from disagg.roles import Role
from disagg.routing.load import Endpoints
from disagg.routing.policies.least_loaded import LeastLoaded
from disagg.routing.policies.round_robin import RoundRobin
from disagg.routing.policy import load_policy
from disagg.routing.view import Choice, RoutingView
from disagg.simulated_engine.model import Model, pairs_of

DATA = Path(__file__).parent / "data"
TIMES = {"prefill_token_s": 2e-5, "prefill_attention_s": 1e-9, "step_leg_s": 1e-5, "step_context_s": 3e-8}
SIZES = {"kv_tokens": 400_000, "page_size": 64, "chunk_tokens": 8192, "kv_bytes_per_token": 100_000}


def pools(role: Role, engines: int = 2, ranks: int = 2, **changed: float) -> Pool:
    values = {**TIMES, **SIZES, "step_s": 0.005, "transfer_bytes_per_s": 1e10, **changed}
    return Pool(Model(role=role, ranks=ranks, **values), engines)  # type: ignore[arg-type]


PAIRS = [pools(Role.PREFILL), pools(Role.DECODE)]


def setting(trace: str = "mooncake-200.jsonl.gz", **changed: object) -> Setting:
    values = {"pools": PAIRS, "requests": 150, "frontends": 1, "slo": Slo(2.0, 0.05), **changed}
    return Setting(read_trace(DATA / trace), **values)  # type: ignore[arg-type]


def path(first: int, blocks: int) -> array[int]:
    return array("Q", range(first, first + blocks))


def run(of: list[Pool], served: list[Served], frontends: int = 1) -> Run:
    return World(of, [LeastLoaded() for _ in range(frontends)], seed=1).run(served)


def untimed(measured: Measures) -> Measures:
    values = {name: getattr(measured, name) for name in Measures.__slots__}
    return Measures(**values | {"choice_p50_us": 0.0, "choice_p99_us": 0.0})


def test_a_lone_request_takes_as_long_as_the_models_say() -> None:
    prompt, output = 10_000, 101
    [served] = run(PAIRS, [Served(0, 0.0, prompt, output, 200, path(1, 156), "")]).served
    model = PAIRS[0].model
    chunks_s = model.chunk_s(8192, pairs_of(8192, 0)) + model.chunk_s(1808, pairs_of(1808, 8192))
    last_chunk_bytes = 1808 * model.kv_bytes_per_token  # the first one's went while the second was read
    transfer_s = model.transfer_setup_s + last_chunk_bytes / model.transfer_bytes_per_s
    assert served.first_s == pytest.approx(model.dispatch_s + chunks_s + transfer_s)
    steps_s = sum(PAIRS[1].model.decode_step_s(1, prompt + 1 + step) for step in range(output - 1))
    assert served.ended_s - served.first_s == pytest.approx(steps_s)


def test_an_aggregated_rank_reads_before_it_decodes() -> None:
    alone = [pools(Role.AGGREGATED, engines=1, ranks=1)]
    one, other = Served(0, 0.0, 100, 200, 200, path(1, 1), ""), Served(1, 0.1, 20_000, 5, 5, path(1000, 312), "")
    result = run(alone, [one, other])
    stall_s = max(seconds for seconds, _ in result.gaps)
    model = alone[0].model
    chunks = ((8192, 0), (8192, 8192), (3616, 16_384))
    read_s = sum(model.chunk_s(tokens, pairs_of(tokens, before)) for tokens, before in chunks)
    assert stall_s == pytest.approx(read_s + model.decode_step_s(2, 20_200), rel=0.02)


def test_a_prompt_that_was_read_is_cached_on_its_rank_alone() -> None:
    one = [pools(Role.PREFILL, 1, 1), pools(Role.DECODE, 1, 1)]
    served = [Served(number, float(number), 1000, 2, 2, path(1, 15), "") for number in range(2)]
    assert [each.cached_tokens for each in run(one, served).served] == [0, 960]
    two = [pools(Role.PREFILL, 2, 1), pools(Role.DECODE, 1, 1)]
    served = [Served(number, number * 1e-3, 1000, 2, 2, path(1, 15), "") for number in range(2)]
    assert [each.cached_tokens for each in run(two, served).served] == [0, 0]


def test_the_same_seed_gives_the_same_figures_and_another_one_others() -> None:
    simulation = Simulation(setting())
    once, again = (simulation.run(LeastLoaded, 8.0, seed=1) for _ in range(2))
    assert untimed(once) == untimed(again)
    assert untimed(once) != untimed(simulation.run(LeastLoaded, 8.0, seed=2))


@pytest.mark.parametrize("trace", ["mooncake-200.jsonl.gz", "agentic-200.jsonl.gz", "azure-200.csv"])
def test_every_request_of_a_trace_is_answered_with_all_of_its_tokens(trace: str) -> None:
    simulation = Simulation(setting(trace))
    plan, result = simulation.play(LeastLoaded, 2.0, 1, frontends=2)
    assert len(result.served) == len(plan.requests)
    assert sum(count for _, count in result.gaps) == sum(each.output_tokens - 1 for each in plan.requests)
    assert sum(rank.cache.locked_tokens for rank in result.ranks) == 0
    assert sum(each.cached_tokens for each in result.served) <= sum(each.ideal_tokens for each in plan.requests)


def test_a_closed_loop_asks_after_its_think_time() -> None:
    simulation = Simulation(setting("agentic-200.jsonl.gz"))
    plan, result = simulation.play(LeastLoaded, 1.0, 1)
    served = {each.number: each for each in result.served}
    followers = [each for each in plan.requests if each.after >= 0]
    assert followers
    for each in followers:
        assert served[each.number].due_s == pytest.approx(served[each.after].ended_s + each.at_s)


def test_a_policy_that_reads_prefixes_finds_more_of_them() -> None:
    simulation = Simulation(setting("agentic-200.jsonl.gz"))
    blind, aware = (
        simulation.run(lambda name=name: load_policy(name), 1.0, 1)  # type: ignore[misc]
        for name in ("least_loaded", "dynamo_kv")
    )
    assert aware.hit_rate > 1.5 * blind.hit_rate
    assert aware.at_fault == 0


def test_what_a_host_refuses_is_sent_again() -> None:
    """Two frontends that have heard nothing of each other yet choose the same place."""
    tight = [pools(Role.AGGREGATED, 1, 1, requests_max=1)]
    served = [Served(number, 0.0, 100, 2, 2, path(number * 100 + 1, 1), "") for number in range(6)]
    result = run(tight, served, frontends=2)
    assert result.refusals
    assert len(result.served) == 6


def test_decode_lets_nobody_in_while_its_pool_is_full() -> None:
    full = [pools(Role.PREFILL, 1, 1), pools(Role.DECODE, 1, 1, kv_tokens=2048)]
    served = [Served(number, 0.0, 1000, 100, 100, path(number * 100 + 1, 15), "") for number in range(2)]
    first, second = run(full, served).served
    assert second.first_s > first.ended_s


class Broken:
    def choose(self, request: RoutingView, endpoints: Endpoints) -> Choice | None:
        raise ValueError("broken")


def test_a_policy_that_fails_is_counted() -> None:
    measured = Simulation(setting(requests=20)).run(Broken, 5.0, 1)
    assert measured.at_fault == 20


def test_a_deployment_carries_its_capacity_and_not_much_more() -> None:
    simulation = Simulation(setting())
    capacity = simulation.capacity()
    below, above = (simulation.run(LeastLoaded, share * capacity, 0).ttft_mean_s for share in (0.5, 2.0))
    assert above > 2 * below


def test_round_robin_evens_counts_out_and_least_loaded_work() -> None:
    simulation = Simulation(setting())
    by_turns, by_load = (simulation.run(policy, 6.0, 1) for policy in (RoundRobin, LeastLoaded))
    assert by_load.ttft_mean_s < by_turns.ttft_mean_s


@pytest.mark.parametrize("requests", [1, 5, 8])
def test_too_few_requests_to_show_what_a_deployment_carries_are_refused(requests: int) -> None:
    with pytest.raises(
        TraceError, match=r"4 ranks can read at most.*replay 16 or more \(--requests\), or say the rate"
    ):
        Simulation(setting(requests=requests)).capacity()


def test_so_many_as_are_said_to_do_are_enough() -> None:
    assert Simulation(setting(requests=16)).capacity() > 0


def test_a_closed_trace_is_replayed_though_no_session_begins_with_what_fits() -> None:
    sessions = [
        [
            TraceRequest(2 * number, 0.0, 5000, 10, (), str(number)),
            TraceRequest(2 * number + 1, 1.0, 100, 10, (), str(number), after=2 * number),
        ]
        for number in range(3)
    ]
    nothing = TraceRequest(6, 0.0, 5000, 10, (), "nothing of it fits")
    trace = Trace("closed", 0, [*sum(sessions, []), nothing], is_closed=True)  # noqa: RUF017
    plan = Sampler(trace, 7, 64, 1000).plan(1.0, 0)
    assert len(plan.requests) >= 7
    assert {each.prompt_tokens for each in plan.requests} == {100}
    assert plan.left_out == 4


def test_four_frontends_serve_nearly_as_soon_as_one() -> None:
    """They know of each other's requests by hosts' reports alone."""
    pairs = [pools(Role.PREFILL, 4), pools(Role.DECODE, 4)]

    def ttft_s(frontends: int) -> float:
        simulation = Simulation(setting(pools=pairs, requests=200, frontends=frontends))
        return sum(simulation.run(lambda: load_policy("predicted"), 10.0, seed).ttft_mean_s for seed in (1, 2, 3))

    assert ttft_s(4) < 1.03 * ttft_s(1)
