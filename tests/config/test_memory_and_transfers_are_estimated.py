"""What a rank needs of its GPU, and what moving a prompt's KV costs, by hand and as measured."""

import json
from typing import Any

import pytest

from disagg.load import parse_config
from disagg.models.facts import ModelFacts, find_facts
from disagg.planning.assess import Assessment, assess
from disagg.planning.cluster_shape import ClusterShape, parse_shape
from disagg.planning.gpu_kinds import GPU_KINDS
from disagg.planning.lanes import SAME_GPU, SHM, TCP, Lane, lane_between, nvlink, transfer_s
from disagg.planning.memory import estimate, kv_bytes_of_rank, weight_bytes_of_rank
from disagg.planning.plan import resolve
from disagg.planning.report import render, to_json

GIB = 1 << 30
DP_ATTENTION = {"enable_dp_attention": True, "moe_a2a_backend": "deepep", "moe_dense_tp_size": 1}


def facts_of(model: str) -> ModelFacts:
    facts = find_facts(model)
    assert facts is not None
    return facts


V3, LLAMA = "deepseek-ai/DeepSeek-V3", "meta-llama/Llama-3.3-70B-Instruct"


def test_tensor_parallel_ranks_share_all_weights_and_dp_attention_copies_what_attention_needs() -> None:
    llama, v3 = facts_of(LLAMA), facts_of(V3)
    assert weight_bytes_of_rank({"tp_size": 8}, llama) == pytest.approx(llama.weight_bytes / 8, rel=0.001)
    parts = v3.weights
    of_rank = weight_bytes_of_rank({"tp_size": 32, "dp_size": 32, "ep_num_redundant_experts": 32, **DP_ATTENTION}, v3)
    copied = parts.embedding + parts.attention + parts.dense + parts.shared + parts.router
    assert of_rank == pytest.approx(copied + parts.routed * 288 / 256 / 32, rel=0.001)


def test_pipeline_stages_share_layers_but_not_the_embedding() -> None:
    llama = facts_of(LLAMA)
    of_rank = weight_bytes_of_rank({"tp_size": 2, "pp_size": 4}, llama)
    assert of_rank == pytest.approx(
        llama.weights.embedding / 2 + (llama.weight_bytes - llama.weights.embedding) / 8, rel=0.001
    )


def test_heads_are_shared_out_and_a_latent_is_not() -> None:
    llama, v3 = facts_of(LLAMA), facts_of(V3)
    assert kv_bytes_of_rank({"tp_size": 8}, llama, 1) == 320 * 1024 / 8
    assert kv_bytes_of_rank({"tp_size": 16}, llama, 1) == 320 * 1024 / 8  # each head twice
    assert kv_bytes_of_rank({"tp_size": 8}, v3, 1) == 70_272
    assert kv_bytes_of_rank({"tp_size": 8, "dp_size": 8, "enable_dp_attention": True}, llama, 1) == 320 * 1024
    assert kv_bytes_of_rank({"kv_cache_dtype": "fp8_e4m3"}, v3, 1) == 35_136


@pytest.mark.parametrize(
    ("arguments", "gib"),
    [
        ({}, 141.1e9),
        ({"quantization": "fp8"}, 72.7e9),
        ({"dtype": "float32"}, 282.2e9),
        ({"dtype": "float16"}, 141.1e9),
    ],
)
def test_weights_count_as_the_engine_is_told_to_load_them(arguments: dict[str, Any], gib: float) -> None:
    assert weight_bytes_of_rank(arguments, facts_of(LLAMA)) == pytest.approx(gib, rel=0.01)


def test_what_is_said_of_memory_is_taken() -> None:
    said = estimate({"tp_size": 8, "mem_fraction_static": 0.9}, facts_of(LLAMA), GPU_KINDS["h200"])
    assert said.total == 143_771 << 20
    assert said.reserve == pytest.approx(0.1 * said.total, rel=0.001)
    assert said.kv_tokens == (said.total - said.reserve - said.weights) // said.kv_bytes_per_token
    capped = estimate({"tp_size": 8, "max_total_tokens": 1000}, facts_of(LLAMA), GPU_KINDS["h200"])
    assert (capped.kv_tokens, capped.kv) == (1000, 1000 * 40 * 1024)
    assert capped.free is not None
    assert capped.free > 90 * GIB


def test_what_is_not_said_follows_sglangs_rule() -> None:
    """512 + 8192 * 1.5 + 1/8 * 1024 MiB and the graphs of a prefill; the floor of 10 GiB for a small one."""
    llama = facts_of("meta-llama/Llama-3.1-8B-Instruct")
    prefill = estimate({"disaggregation_mode": "prefill", "disable_cuda_graph": True}, llama, GPU_KINDS["h100-80g"])
    assert prefill.reserve == (512 + 12_288 + 128) << 20
    small = {"disaggregation_mode": "decode", "max_running_requests": 8, "cuda_graph_max_bs_decode": 8}
    assert estimate(small, llama, GPU_KINDS["h100-80g"]).reserve == 10 << 30
    deepep = {
        "disaggregation_mode": "decode",
        "tp_size": 8,
        "dp_size": 8,
        "cuda_graph_max_bs_decode": 256,
        **DP_ATTENTION,
    }
    in_mib = max(512 + 2048 * 1.5 + 1024 + 256 * 8 * 3 + 256 * 2, 10 * 1024) + 2048
    assert estimate(deepep, facts_of(V3), GPU_KINDS["h200"]).reserve == round(in_mib) << 20


def test_what_does_not_fit_is_below_zero() -> None:
    memory = estimate({"mem_fraction_static": 0.9}, facts_of(LLAMA), GPU_KINDS["h100-80g"])
    assert memory.kv_tokens == 0
    assert memory.free is not None
    assert memory.free < 0


def test_engines_that_share_a_gpu_each_have_their_part() -> None:
    assert estimate({}, facts_of("smollm2"), GPU_KINDS["h200"], 0.45).total == pytest.approx(0.45 * (143_771 << 20))


def test_without_a_gpu_only_what_was_asked_for_is_known() -> None:
    known = estimate({"max_total_tokens": 100}, facts_of("smollm2"), None)
    assert (known.kv, known.total, known.free) == (100 * known.kv_bytes_per_token, None, None)
    assert estimate({}, facts_of("smollm2"), None).kv is None


CLUSTER = """
nodes:
- {count: 2, name: h, cpus: 64, gpus: 8, gpu_kind: h200, nics: [{count: 8, kind: ib, gbit: 400}]}
- {count: 2, name: few, cpus: 64, gpus: 8, gpu_kind: h200, nics: [{count: 2, kind: roce, gbit: 400}]}
- {count: 2, name: rack, cpus: 64, gpus: 4, gpu_kind: gb200, nvlink: rack:0}
- {name: pcie, cpus: 64, gpus: 2, gpu_kind: l40s, nics: [{kind: ethernet, gbit: 100}]}
- {count: 2, name: cpu, cpus: 2}
"""
LANES = {
    ("h-0", "h-0"): ("cuda_ipc", 450),
    ("h-0", "h-1"): ("rdma", 50),
    ("h-0", "few-0"): ("rdma", 12.5),
    ("rack-0", "rack-1"): ("tcp", 0.5),  # NVLink does not reach memory that was not allocated for it
    ("rack-0", "rack-0"): ("cuda_ipc", 900),
    ("h-0", "rack-0"): ("tcp", 0.5),
    ("pcie", "pcie"): ("cuda_ipc", 25),
    ("pcie", "h-0"): ("tcp", 0.5),
    ("cpu-0", "cpu-0"): ("shm", 5),
    ("cpu-0", "cpu-1"): ("tcp", 0.5),
}


@pytest.mark.parametrize(("ends", "lane"), LANES.items(), ids=lambda value: "-".join(map(str, value)))
def test_kv_takes_the_best_way_there_is(ends: tuple[str, str], lane: tuple[str, float]) -> None:
    shape = parse_shape(CLUSTER)
    for source, target in (ends, ends[::-1]):
        found = lane_between(shape.node(source), shape.node(target))
        assert (found.kind, found.gbyte_s) == lane


def test_nvlink_between_nodes_takes_kv_that_both_roles_allocate_for_it() -> None:
    pools = "prefill: {env: %s, engine: {tp_size: 4}}\ndecode: {env: %s, engine: {tp_size: 4}}"
    rack = "nodes: [{count: 2, name: t, cpus: 64, gpus: 4, gpu_kind: gb200, nvlink: rack:0}]"
    fabric = '{SGLANG_MOONCAKE_CUSTOM_MEM_POOL: "True"}'
    assert examined(pools % (fabric, fabric), rack).lanes["prefill.0"] == {nvlink("gb200"): 1}
    assert examined(pools % (fabric, "{}"), rack).lanes["prefill.0"] == {TCP: 1}


def test_scattered_pages_cost_as_measured() -> None:
    """An H200, 144 KiB a token in 28 layers, page 16: 8,000 tokens took 65 to 76 ms, 2,000 took 17 to 19."""
    config = {"num_hidden_layers": 28, "hidden_size": 8192, "num_attention_heads": 64, "num_key_value_heads": 8}
    from disagg.models.facts import facts_of_config
    from disagg.models.hub_config import HubConfig

    sizes = {"intermediate_size": 1, "vocab_size": 1, "head_dim": 160}
    facts = facts_of_config(HubConfig("measured", config | sizes), "")
    assert facts.kv_bytes_per_token() == 140 * 1024
    side_by_side, scattered = transfer_s(SAME_GPU, {"page_size": 16}, facts, 8000)
    assert 0.065 < scattered < 0.076
    assert side_by_side < 0.005
    assert 0.017 < transfer_s(SAME_GPU, {"page_size": 16}, facts, 2000)[1] < 0.0195


def test_pages_are_those_that_the_attention_backend_makes() -> None:
    v3 = facts_of(V3)
    of_backend = transfer_s(SAME_GPU, {"attention_backend": "flashmla", "page_size": 1}, v3, 8192)
    assert of_backend == transfer_s(SAME_GPU, {"page_size": 64}, v3, 8192)


def test_ranks_send_their_shares_side_by_side() -> None:
    lane = Lane("rdma", "", 50, "")
    llama, v3 = facts_of(LLAMA), facts_of(V3)
    assert transfer_s(lane, {"tp_size": 8}, llama, 1024)[0] == pytest.approx(1024 * 40 * 1024 / 50e9)
    assert transfer_s(lane, {"tp_size": 8}, v3, 1024)[0] == pytest.approx(1024 * 70_272 / 50e9)


def examined(pools: str, cluster: str | None, device: str = "cuda", model: str = "smollm2") -> Assessment:
    plan = resolve(parse_config(f"version: 1\nmodel: {{path: {model}}}\n" + pools), device)  # type: ignore[arg-type]
    shape: ClusterShape | None = parse_shape(cluster) if cluster else None
    return assess(plan, shape)


def test_lanes_are_those_between_the_places_of_both_roles() -> None:
    pools = "prefill: {resources: {gpus: 8}, engine: {tp_size: 8}}\ndecode: {replicas: 2, engine: {tp_size: 4}}"
    seen = examined(pools, "nodes: [{count: 2, name: h, cpus: 64, gpus: 8, gpu_kind: h200}]")
    assert seen.lanes == {"prefill.0": {TCP: 2}}
    shared = examined("prefill: {resources: {gpus: 0.4}}\ndecode: {resources: {gpus: 0.4}}", CLUSTER)
    assert sum(shared.lanes["prefill.0"].values()) == 1
    one = "nodes: [{cpus: 64, gpus: %d, gpu_kind: h200}]"
    assert examined("prefill: {}\ndecode: {}", one % 2).lanes == {"prefill.0": {nvlink("h200"): 1}}
    parts = examined("prefill: {resources: {gpus: .4}}\ndecode: {resources: {gpus: .4}}", one % 1)
    assert parts.lanes == {"prefill.0": {SAME_GPU: 1}}
    assert SHM in examined("prefill: {}\ndecode: {}", None, "cpu").lanes["prefill.0"]


def test_each_prefill_pool_sends_as_its_own_engines_do() -> None:
    prefill = "prefill: [{name: wide, engine: {tp_size: 4}}, {name: narrow, replicas: 2}]\n"
    seen = examined(prefill + "decode: {}", "nodes: [{cpus: 64, gpus: 8, gpu_kind: h200}]")
    assert seen.lanes == {"wide": {nvlink("h200"): 1}, "narrow": {nvlink("h200"): 2}}
    seconds = {
        row["pool"]: row["seconds"][0] for row in json.loads(to_json([seen]))["transfers"] if row["tokens"] == 1024
    }
    assert seconds["wide"] < seconds["narrow"]
    assert "\n  from narrow over NVLink of h200, 450 GB/s, 2 pairs of members: " in render(seen)


def test_what_could_not_be_looked_at_is_said() -> None:
    seen = examined("prefill: {}\ndecode: {}", None, model="somebody/unknown-model")
    assert [what.partition(" ")[0] for what in seen.unknown] == ["model.path", "no", "device:"]
    assert seen.memory == {}
