"""The processes that SGLang starts for an engine on this node: predicted from its arguments, and as seen once it runs.

Way:   host, spawned -> [expected_children] -> Spares, which import SGLang while the host does
       host, up -> [seen_children] -> what the next incarnation's standby is made of; [pids_by_role] -> EngineFacts
Fails: never. A spare that SGLang does not use is ended; a process without a spare is spawned
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import psutil

from disagg.host_spec import Spare
from disagg.sglang.releases import number_of

SCHEDULER, CONTROLLER = "sglang.srt.managers.scheduler", "sglang.srt.managers.data_parallel_controller"
DETOKENIZER = "sglang.srt.managers.detokenizer_manager"
# With DP attention the host starts the ranks from then on, by a function of the controller's module; before, the
# controller does.
PRELAUNCHED_SINCE = (0, 5, 22)


def expected_children(arguments: Mapping[str, Any], version: str) -> tuple[Spare, ...]:
    """`arguments`: neutral ones (disagg/sglang/versions.py); `version`: of SGLang."""

    def number(name: str, otherwise: int) -> int:
        return int(arguments.get(name) or otherwise)

    ranks = number("tp_size", 1) * number("pp_size", 1) // number("nnodes", 1)
    schedulers: tuple[Spare, ...] = (Spare(SCHEDULER),) * ranks
    if number("dp_size", 1) > 1:
        prelaunched = bool(arguments.get("enable_dp_attention")) and number_of(version) >= PRELAUNCHED_SINCE
        schedulers = (Spare(CONTROLLER),) * (ranks + 1) if prelaunched else (Spare(CONTROLLER, schedulers),)
    return schedulers if number("node_rank", 0) else (*schedulers, Spare(DETOKENIZER))


def seen_children(started: Sequence[str], ranks: int) -> list[Spare]:
    """`started`: the module of each process that the host has started, in order; `ranks`: schedulers on this node."""
    of_controller = (Spare(SCHEDULER),) * ranks if started.count(CONTROLLER) == 1 else ()
    return [Spare(module, of_controller if module == CONTROLLER else ()) for module in started]


def pids_by_role(pids: Iterable[int]) -> dict[str, list[int]]:
    """Read from the titles that SGLang gives its processes."""
    roles: dict[str, list[int]] = {"schedulers": [], "detokenizers": [], "others": []}
    for pid in pids:
        with contextlib.suppress(psutil.Error):  # it has ended
            title = " ".join(psutil.Process(pid).cmdline())
            kind = "schedulers" if "scheduler" in title else "detokenizers" if "detokenizer" in title else "others"
            roles[kind].append(pid)
    return {kind: found for kind, found in roles.items() if found}
