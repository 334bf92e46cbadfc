"""A member of a decode gang is killed under streams: they go on from another engine, with the same tokens."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, job
from deployment import Deployment
from moe import prompt
from streams import Stream, wait_until

CONFIG = Path(__file__).with_name("gang-and-single.yaml")
GANG = "decode-0"
STREAMS, TOKENS = 6, 64
WHOLE_S = 120.0
BACK_S = 120.0
BY_LOAD = "routing.policy=least_loaded"  # the gang is slower, and `predicted` would learn that


@pytest.fixture
def deployment(two: Cluster) -> Iterator[Deployment]:
    with job(two, CONFIG, "deadlines.no_pair_s=60", BY_LOAD) as made:
        yield made


def test_streams_leave_a_gang_whose_member_is_killed(deployment: Deployment) -> None:
    undisturbed = [stream.whole(WHOLE_S) for stream in _open(deployment)]
    streams = _open(deployment)
    wait_until(lambda: all(len(stream.events) >= 4 for stream in streams), WHOLE_S)
    gang = deployment.engine(GANG)
    os.kill(gang["members"][1]["pids"]["host"], signal.SIGKILL)
    assert [stream.whole(WHOLE_S) for stream in streams] == undisturbed
    ways = [deployment.timeline(stream.request_id, until="usage") for stream in streams]
    moved = [way for way in ways if way.get("lost_tries")]
    assert moved, "no stream was on the gang"
    print(f"{len(moved)} of {STREAMS} moved; pauses {[way['pauses_ms'] for way in moved]} ms")
    wait_until(lambda: deployment.all_ready() and deployment.engine(GANG)["incarnation"] > gang["incarnation"], BACK_S)


def _open(deployment: Deployment) -> list[Stream]:
    return [Stream(deployment, prompt(20, 50 + number), TOKENS, model="tiny-dsv3") for number in range(STREAMS)]
