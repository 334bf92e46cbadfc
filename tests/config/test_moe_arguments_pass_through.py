"""What a DeepSeek deployment says of experts and ranks comes to SGLang as it is written, each role its own."""

from __future__ import annotations

import pytest

from disagg.load import parse_config
from disagg.planning.plan import EnginePlan, resolve
from disagg.roles import Role
from disagg.sglang.arguments import Ports

TEXT = """
version: 1
device: cuda
model: {path: /models/deepseek-r1, name: deepseek-r1}
prefill:
  nodes: 4
  engine:
    tp_size: 32
    dp_size: 32
    enable_dp_attention: true
    ep_size: 32
    enable_dp_lm_head: true
    moe_dense_tp_size: 1
    moe_a2a_backend: deepep
    deepep_mode: normal
    deepep_config: /etc/deepep.json
    enable_eplb: true
    eplb_algorithm: deepseek
    ep_num_redundant_experts: 32
    ep_dispatch_algorithm: dynamic
    init_expert_location: /etc/prefill-experts.json
    enable_two_batch_overlap: true
    page_size: 1
decode:
  nodes: 9
  engine:
    tp_size: 72
    dp_size: 72
    enable_dp_attention: true
    ep_size: 72
    enable_dp_lm_head: true
    moe-dense-tp-size: 1
    moe-a2a-backend: deepep
    deepep-mode: low_latency
    enable-eplb: true
    ep-num-redundant-experts: 32
    ep-dispatch-algorithm: static
    enable-two-batch-overlap: true
    page_size: 1
  env: {SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK: 256}
"""


@pytest.fixture(scope="module")
def engines() -> dict[Role, EnginePlan]:
    return {engine.role: engine for engine in resolve(parse_config(TEXT), "cuda").engines}


@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
def test_nothing_is_refused_or_lost(engines: dict[Role, EnginePlan], role: Role) -> None:
    said = parse_config(TEXT).prefill[0] if role is Role.PREFILL else parse_config(TEXT).decode[0]
    given = engines[role].arguments(device="cuda", model_path="/m", host="h", ports=Ports(*range(len(Ports._fields))))
    assert said.engine.items() <= given.items()


def test_each_role_has_its_own_way_of_sending_tokens_to_experts(engines: dict[Role, EnginePlan]) -> None:
    assert engines[Role.PREFILL].engine["deepep_mode"] == "normal"
    assert engines[Role.DECODE].engine["deepep_mode"] == "low_latency"


def test_ranks_are_counted_by_role(engines: dict[Role, EnginePlan]) -> None:
    shapes = {role: (e.ranks, e.dp_ranks, e.nodes, e.gpus) for role, e in engines.items()}
    assert shapes == {Role.PREFILL: (32, 32, 4, 8), Role.DECODE: (72, 72, 9, 8)}


def test_the_bound_on_dispatched_tokens_stands_in_the_environment_of_its_role(engines: dict[Role, EnginePlan]) -> None:
    deadlines = parse_config(TEXT).deadlines
    name = "SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK"
    assert engines[Role.DECODE].environment(device="cuda", deadlines=deadlines)[name] == "256"
    assert name not in engines[Role.PREFILL].environment(device="cuda", deadlines=deadlines)
