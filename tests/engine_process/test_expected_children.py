"""What a host starts before SGLang asks for it, so that it imports meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from disagg.engine.handover import Spare
from disagg.engine.host import CONTROLLER, DETOKENIZER, SCHEDULER, expected_children

DP_ATTENTION = {"tp_size": 16, "dp_size": 16, "enable_dp_attention": True}
RANK, TEXT = Spare(SCHEDULER), Spare(DETOKENIZER)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, (RANK, TEXT)),
        ({"tp_size": 2, "pp_size": None, "dp_size": 1}, (RANK, RANK, TEXT)),
        ({"tp_size": 4, "pp_size": 2, "nnodes": 2, "node_rank": 0}, (*[RANK] * 4, TEXT)),
        ({"tp_size": 4, "pp_size": 2, "nnodes": 2, "node_rank": 1}, (RANK,) * 4),
        ({"tp_size": 2, "dp_size": 2, "enable_dp_attention": True}, (Spare(CONTROLLER, (RANK, RANK)), TEXT)),
        (DP_ATTENTION | {"nnodes": 2, "node_rank": 1}, (Spare(CONTROLLER, (RANK,) * 8),)),
    ],
)
def test_a_rank_of_this_node_each_and_a_detokenizer_on_the_first(
    arguments: dict[str, Any], expected: tuple[Spare, ...]
) -> None:
    assert expected_children(arguments) == expected
