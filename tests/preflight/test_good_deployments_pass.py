"""What looks like a planted mistake, and works: the rules let it through."""

from __future__ import annotations

import pytest

from disagg.load import parse_config
from disagg.planning.plan import resolve
from disagg.preflight.api import check
from tests.preflight.mistakes import Mistake

SHORT = {"all": {"memlock_bytes": 8 << 20}}


def good(base: str, *sets: str, **more: object) -> Mistake:
    return Mistake("", "", base, "", "", "", sets=sets, **more)  # type: ignore[arg-type]


def is_let_through(mistake: Mistake) -> bool:
    found = check(mistake.plan(), mistake.cluster(), mistake.model(), mistake.measured())
    assert not found, found
    return True


@pytest.mark.parametrize("device", ["simulated", "cpu"])
def test_nothing_is_pinned_where_kv_is_not_on_gpus(device: str) -> None:
    text = f"version: 1\ndevice: {device}\nmodel: {{path: smollm2}}\n"
    split = text + "prefill: {resources: {cpus: 128}}\ndecode: {resources: {cpus: 128}}\n"
    nodes = Mistake("", "", "llama", "", "", "", nodes=SHORT | {"count": 2}).cluster()
    assert check(resolve(parse_config(split), device), nodes) == []  # type: ignore[arg-type]


def test_nothing_is_pinned_on_one_node_nor_where_rdma_is_not_asked_for() -> None:
    assert is_let_through(good("llama", nodes=SHORT | {"count": 1}))
    tcp = ("transfer.lanes=[tcp]", "transfer.allow_tcp=true")
    assert is_let_through(good("deepseek", *tcp, nodes=SHORT))


def test_nothing_is_pinned_on_a_node_that_no_kv_leaves() -> None:
    assert is_let_through(good("deepseek", nodes={"count": 5, "4": {"memlock_bytes": 65536}}))


def test_a_rack_whose_kv_is_allocated_for_its_nvlink() -> None:
    pool = "env.SGLANG_MOONCAKE_CUSTOM_MEM_POOL='True'"
    fabric = {"all": {"nics": "ethernet", "nvlink": "rack:0"}}
    assert is_let_through(good("deepseek", f"prefill.{pool}", f"decode.{pool}", nodes=fabric))


def test_lanes_that_are_as_said() -> None:
    lanes = (
        ("h-0", "h-2", "rc_mlx5", 45.0),
        ("h-0", "h-2", "rc_mlx5+cuda_copy", 45.0),
        ("h-0", "h-0", "cuda_ipc", 400.0),
    )
    assert is_let_through(good("deepseek", "transfer.lanes=[rdma]", lanes=lanes))


def test_a_longer_context_where_the_models_configuration_is_overridden() -> None:
    said = "engine.json_model_override_args='{\"max_position_embeddings\": 262144}'"
    length = "engine.context_length=262144"
    assert is_let_through(
        good("llama", *(f"{role}.{what}" for role in ("prefill", "decode") for what in (said, length)))
    )
