"""Of many cases that take long, some each day: continuous integration has an hour for all tests.

With DISAGG_TESTS=all each case runs.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

# Of files whose tests have deployments of their own, so many run each day where all tests are asked for.
FILES_A_DAY: tuple[tuple[int, tuple[str, ...]], ...] = (
    (
        4,
        (
            "engines/test_conditional_disaggregation.py",
            "engines/test_embeddings.py",
            "engines/test_engines_tell_of_themselves.py",
            "engines/test_lora.py",
            "engines/test_moe_same_tokens.py",
            "engines/test_moe_unequal_roles.py",
            "engines/test_same_tokens.py",
            "engines/test_sglangs_own_kits.py",
            "engines/test_two_models.py",
        ),
    ),
    (
        6,
        (
            "engines/test_a_detached_deployment.py",
            "engines/test_cancellation.py",
            "engines/test_changes_while_serving.py",
            "engines/test_decode_is_paced.py",
            "engines/test_deployments_live_side_by_side.py",
            "engines/test_engine_death.py",
            "engines/test_engine_host.py",
            "engines/test_kv_routing.py",
            "engines/test_leaves_nothing.py",
            "engines/test_signals_at_any_moment.py",
            "engines/test_standby.py",
            "engines/test_start_up.py",
        ),
    ),
    (
        4,
        (
            "deploy/test_slurm_end_to_end.py",
            "engines/test_places_are_rays.py",
            "nodes/test_everything_is_lost_once.py",
            "nodes/test_losses_between_nodes.py",
            "nodes/test_simulated_gang.py",
            "nodes/test_streams_leave_a_gang.py",
            "nodes/test_two_nodes.py",
            "preflight/test_probes_on_ray.py",
        ),
    ),
)


def todays(cases: Sequence[T], count: int) -> list[T]:
    """In their order; others each day."""
    if os.environ.get("DISAGG_TESTS") == "all":
        return list(cases)
    chosen = random.Random(time.strftime("%F")).sample(range(len(cases)), min(count, len(cases)))
    return [cases[each] for each in sorted(chosen)]


def other_days_files() -> set[str]:
    """Of those in FILES_A_DAY, which do not run today: paths below tests/."""
    return {file for count, files in FILES_A_DAY for file in set(files) - set(todays(files, count))}
