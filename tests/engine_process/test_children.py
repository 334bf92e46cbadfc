"""Which processes SGLang is expected to start, so that they import while their host does, and which it has started."""

from __future__ import annotations

from typing import Any

import pytest

from disagg.host_spec import Spare
from disagg.sglang.children import CONTROLLER, DETOKENIZER, SCHEDULER, expected_children, seen_children

DP_ATTENTION = {"tp_size": 4, "dp_size": 4, "enable_dp_attention": True}
RANK, TEXT = Spare(SCHEDULER), Spare(DETOKENIZER)
PRELAUNCHED = Spare(CONTROLLER)


def of_controller(ranks: int) -> Spare:
    return Spare(CONTROLLER, (RANK,) * ranks)


@pytest.mark.parametrize(
    ("arguments", "version", "expected"),
    [
        ({}, "0.5.20", (RANK, TEXT)),
        ({"tp_size": 2, "pp_size": None, "dp_size": 1}, "0.5.23", (RANK, RANK, TEXT)),
        ({"tp_size": 4, "pp_size": 2, "nnodes": 2, "node_rank": 0}, "0.5.20", (*[RANK] * 4, TEXT)),
        ({"tp_size": 4, "pp_size": 2, "nnodes": 2, "node_rank": 1}, "0.5.20", (RANK,) * 4),
        (DP_ATTENTION, "0.5.21", (of_controller(4), TEXT)),
        (DP_ATTENTION, "0.5.22", (*[PRELAUNCHED] * 5, TEXT)),
        (DP_ATTENTION | {"nnodes": 2, "node_rank": 1}, "0.5.16", (of_controller(2),)),
        (DP_ATTENTION | {"nnodes": 2, "node_rank": 1}, "0.5.23", (PRELAUNCHED,) * 3),
    ],
)
def test_a_rank_of_this_node_each_and_a_detokenizer_on_the_first(
    arguments: dict[str, Any], version: str, expected: tuple[Spare, ...]
) -> None:
    """As engine.py and data_parallel_controller.py of those releases start them."""
    assert expected_children(arguments, version) == expected


def test_a_controller_has_ranks_of_its_own_only_where_the_host_started_none() -> None:
    assert seen_children([SCHEDULER, SCHEDULER, DETOKENIZER], 2) == [RANK, RANK, TEXT]
    assert seen_children([CONTROLLER, DETOKENIZER], 2) == [of_controller(2), TEXT]
    assert seen_children([CONTROLLER, CONTROLLER, CONTROLLER, DETOKENIZER], 2) == [*[PRELAUNCHED] * 3, TEXT]
