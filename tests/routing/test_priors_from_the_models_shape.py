"""What is believed before anything is measured follows from the model, its parallelism, and the devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from disagg.load import load_config, parse_config
from disagg.models.facts import find_facts
from disagg.planning.gpu_kinds import GPU_KINDS, GpuKind
from disagg.planning.plan import Device, Plan, device_of, resolve, resolve_parts
from disagg.routing.cost.costs import Costs
from disagg.routing.cost.from_shape import NO_PRIOR, prior_of
from disagg.routing.cost.prior import Prior

H200 = GPU_KINDS["h200"]


def prior(model: str, pools: str, device: Device = "cuda", gpu: GpuKind = H200, **more: Any) -> Prior:
    facts = find_facts(model)
    assert facts is not None, model
    return prior_of(
        resolve(parse_config(f"version: 1\nmodel: {{path: {model}}}\n{pools}"), device), facts, [gpu], **more
    )


ONE_A_ROLE = "prefill: {}\ndecode: {}\n"
EIGHT = "prefill: {engine: {tp_size: 8}}\ndecode: {engine: {tp_size: 8}}\n"
BY_DP = "prefill: {engine: {tp_size: 8, dp_size: 8, enable_dp_attention: true}}\ndecode: {engine: {tp_size: 8}}\n"


def test_qwen3_8b_on_an_h200_is_near_what_was_measured() -> None:
    """docs/performance.md: a prompt of 2,000 tokens 58 to 69 ms, of 8,000 275 to 289; a step 5.9 ms."""
    costs = Costs(prior("Qwen/Qwen3-8B", ONE_A_ROLE))
    assert costs.reading_s(2000, 0) == pytest.approx(0.06, rel=0.35)
    assert costs.reading_s(8000, 0) == pytest.approx(0.28, rel=0.25)
    assert costs.step((1.0, 1, 2000)) == pytest.approx(0.0059, rel=0.15)


def test_more_devices_and_quicker_ones_take_less_time_and_a_rank_has_its_share_of_them() -> None:
    one, eight, by_dp = (prior("Qwen/Qwen3-8B", pools) for pools in (ONE_A_ROLE, EIGHT, BY_DP))
    assert one.read_token_s == pytest.approx(8 * eight.read_token_s)
    assert one.read_token_s == pytest.approx(by_dp.read_token_s)
    assert one.step_s > 2 * eight.step_s
    slow = prior("Qwen/Qwen3-8B", ONE_A_ROLE, gpu=GPU_KINDS["l4"])
    assert slow.read_token_s > 5 * one.read_token_s
    assert slow.step_s > 10 * one.step_s


def test_of_experts_a_token_needs_few_and_a_batch_many() -> None:
    dense, sparse = (prior(model, EIGHT) for model in ("meta-llama/Llama-3.1-70B-Instruct", "deepseek-ai/DeepSeek-V3"))
    assert sparse.read_token_s < dense.read_token_s  # 37B of 671B, in fp8
    assert sparse.step_s > dense.step_s
    assert sparse.kv_bytes_per_token < dense.kv_bytes_per_token  # MLA


def test_the_slowest_measured_lane_is_that_of_a_byte() -> None:
    assert prior("Qwen/Qwen3-8B", ONE_A_ROLE, lanes_gbyte_s=[50.0, 0.5]).transfer_byte_s == pytest.approx(2e-9)


def test_simulated_engines_are_known_exactly() -> None:
    deployment = load_config(Path("configs/simulated.yaml"))
    known = prior_of(resolve(deployment, device_of(deployment, 0)), None)
    assert (known.read_token_s, known.step_s, known.kv_bytes_per_token) == (0.0002, 0.01, 24_576)


def test_what_is_not_known_is_as_it_always_was() -> None:
    unknown = GpuKind("a new one", 100_000, 0.0)
    plan = resolve(parse_config("version: 1\nmodel: {path: me/mine}\nprefill: {}\ndecode: {}"), "cuda")
    embeds = resolve(parse_config("version: 1\nmodel: {path: me/mine}\nembedding: {}"), "cuda")
    assert prior_of(plan, None, [H200]) == NO_PRIOR
    assert prior("Qwen/Qwen3-8B", ONE_A_ROLE, gpu=unknown) == NO_PRIOR
    assert prior_of(embeds, find_facts("Qwen/Qwen3-8B"), [H200]) == NO_PRIOR


@pytest.mark.parametrize("file", sorted(Path("configs").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_configuration_has_one_that_makes_sense(file: Path) -> None:
    deployment = load_config(file)
    for plan in resolve_parts(deployment, device_of(deployment, 64)):
        _assert_sensible(plan)


def _assert_sensible(plan: Plan) -> None:
    believed = prior_of(plan, find_facts(plan.model.path), [H200])
    assert all(value >= 0 for value in (believed.read_token_s, believed.read_area_s, believed.step_s))
    assert 1e-7 < believed.read_token_s < 0.02
    assert 1e-4 < believed.step_s < 0.5
