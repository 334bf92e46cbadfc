"""More running requests than the largest CUDA graph: such batches decode several times slower, and that is told."""

from __future__ import annotations

import pytest

from disagg.config.find import shipped_folder, shipped_names
from disagg.load import load_config, parse_config
from disagg.planning.plan import resolve, resolve_parts
from disagg.preflight.api import subject_of
from disagg.preflight.graph_rules import graph_warnings
from tests.preflight.mistakes import Mistake, model_of

TEXT = "version: 1\ndevice: cuda\nmodel: {path: a}\nprefill: {}\ndecode: {}"


def told(*sets: str, device: str = "cuda") -> list[str]:
    plan = resolve(parse_config(TEXT, [f"decode.engine.{each}" for each in sets]), device)
    return list(graph_warnings(subject_of(plan, None, None)))


@pytest.mark.parametrize(
    ("sets", "part"),
    [
        (["max_running_requests=64", "cuda_graph_max_bs_decode=16"], "lets 64 requests run at once"),
        (["max_running_requests=64", "cuda_graph_max_bs_decode=16"], "say cuda_graph_max_bs_decode: 64"),
        (["max_running_requests=64", "cuda_graph_bs_decode=[1,2,32]"], "cuda_graph_bs_decode captures CUDA graphs"),
        (
            ["max_running_requests=64", "tp_size=4", "dp_size=4", "enable_dp_attention=true", "cuda_graph_max_bs=8"],
            "lets 16 requests run at once on a rank",
        ),
    ],
)
def test_a_batch_without_a_graph_is_told(sets: list[str], part: str) -> None:
    (warning,) = told(*sets)
    assert warning.startswith("decode.engine.max_running_requests: ")
    assert part in warning


@pytest.mark.parametrize(
    "sets",
    [
        ["max_running_requests=64", "cuda_graph_max_bs_decode=64"],
        ["max_running_requests=64", "cuda_graph_bs_decode=[8,64]"],
        ["max_running_requests=64", "cuda_graph_max_bs_decode=16", "disable_cuda_graph=true"],
        ["max_running_requests=64"],  # on a GPU that nobody has described
        ["cuda_graph_max_bs_decode=16"],  # nobody asked for more at once
        ["max_running_requests=64", "tp_size=4", "dp_size=4", "enable_dp_attention=true", "cuda_graph_max_bs=16"],
    ],
)
def test_a_batch_with_a_graph_is_not(sets: list[str]) -> None:
    assert told(*sets) == []


def test_a_release_that_captures_fewer_by_itself_is_told() -> None:
    mistake = Mistake("", "", "small", "", "", "", sets=("decode.engine.max_running_requests=1000",))
    subject = subject_of(mistake.plan(), mistake.cluster(), model_of("small"))
    (warning,) = graph_warnings(subject)
    assert "lets 1000 requests run at once on a rank, and SGLang on" in warning
    assert "for up to 256" in warning


@pytest.mark.parametrize("name", [name for name in shipped_names() if "simulated" not in name])
def test_no_shipped_configuration_has_such_batches(name: str) -> None:
    deployment = load_config(shipped_folder() / name)
    device = "cuda" if deployment.device == "auto" else deployment.device
    for plan in resolve_parts(deployment, device):
        assert list(graph_warnings(subject_of(plan, None, None))) == []
