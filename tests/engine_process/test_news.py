"""What an incarnation's processes tell crosses a pipe as a JSON line, and Ray as it is."""

from __future__ import annotations

import os
import pickle
import signal

import pytest

from disagg.host_spec import FOLLOWED, Spare
from disagg.process.news import (
    Exit,
    LaneSeen,
    LogTrouble,
    News,
    Ready,
    StandbyReady,
    Started,
    decode_news,
    encode_news,
    exit_of,
)
from disagg.registry.records import Member

READY = Ready(
    plane="10.0.0.1:20010",
    pids={"host": 7, "schedulers": [8, 9]},
    spares=(Spare("scheduler", (Spare("detokenizer"),)),),
    members=(Member(node="10.0.0.1", pids={"host": 7}, devices="0"),),
)


@pytest.mark.parametrize(
    "news",
    [
        READY,
        Started(1, 2),
        StandbyReady([1], 2.0, 0, "0.5.23"),
        LaneSeen("tcp"),
        LogTrouble(""),
        Exit(code=1, tail=("last",)),
    ],
    ids=lambda news: type(news).__name__,
)
def test_it_comes_as_it_was_sent(news: News) -> None:
    line = encode_news(news)
    assert b"\n" not in line
    assert decode_news(line) == pickle.loads(pickle.dumps(news)) == news  # noqa: S301 - ours


@pytest.mark.parametrize(
    ("run", "status", "followed"),
    [
        (lambda: os._exit(0), "exit status 0", False),
        (lambda: os._exit(FOLLOWED), f"exit status {FOLLOWED}", True),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "killed by SIGKILL", False),
    ],
)
def test_how_a_host_ended(run, status: str, followed: bool) -> None:
    pid = os.fork()
    if not pid:
        run()
    exit_ = exit_of(os.waitpid(pid, 0)[1])
    assert (exit_.status, exit_.has_followed) == (status, followed)


def test_which_of_several_nodes_and_what_else_ended_it() -> None:
    assert Exit(why="its actor is gone", node="node 1 of 2").status == "node 1 of 2: its actor is gone"
