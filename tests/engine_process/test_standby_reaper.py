"""A standby waits quietly, becomes the engine that takes it, and is gone with its actor."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests share reaper_pipe.py; they are not a package

from reaper_pipe import ReaperPipe, host_spec

from disagg.host_spec import Spare, StandbySpec, encode_spec, encode_standby

# A standby host that has nothing to import.
REAPER = """
import json, multiprocessing, os, socket, subprocess, sys, time
from disagg.process import standby_reaper as standby_reaper
from disagg.host_spec import decode_standby, decode_spec
def become_spare(standby, pipe, order):
    lock = multiprocessing.get_context("spawn").Lock()  # as SGLang's children have them
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("the spare imports", standby.environment["A"], flush=True)
    if standby.environment["A"] == "broken": raise ImportError("no such library")
    said = {"event": "spare", "pids": [os.getpid(), child.pid], "lock": lock._semlock.name}
    pipe.sendall(json.dumps(said).encode() + b"\\n")
    with order.makefile("rb") as reader: spec = decode_spec(reader.readline())
    print("it is", spec.life, os.path.isdir(spec.scratch), flush=True)
    pipe.sendall(b'{"event": "ready"}\\n')
    time.sleep(600)
standby_reaper._become_spare = become_spare
pipe = socket.socket(fileno=int(sys.argv[1]))
with pipe.makefile("rb", buffering=0) as reader: line = reader.readline()
standby_reaper.keep(decode_standby(line), pipe)
"""


class Standby(ReaperPipe):
    def __init__(self, folder: Path, environment: str = "1") -> None:
        self.log, self.scratch = folder / "engine.log", folder / "run" / "scratch"
        super().__init__(REAPER, encode_standby(StandbySpec(environment={"A": environment}, spares=(Spare("json"),))))

    def take(self) -> None:
        self.pipe.sendall(encode_spec(host_spec(self.log, self.scratch, incarnation=2, fork=False)) + b"\n")

    def pids(self) -> list[int]:
        said = self.says("spare")
        self.lock = Path(f"/dev/shm/sem.{str(said['lock']).removeprefix('/')}")
        pids = said["pids"]
        assert isinstance(pids, list)
        return pids

    def close(self) -> None:
        self.hang_up()
        self.process.wait(30)


@pytest.fixture
def standby(tmp_path: Path) -> Iterator[Standby]:
    made = Standby(tmp_path)
    yield made
    made.close()


def _live(pids: list[int]) -> bool:
    return any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)


def test_it_becomes_the_engine_and_its_early_words_are_in_the_engines_log(standby: Standby) -> None:
    pids = standby.pids()
    nice = {os.getpriority(os.PRIO_PROCESS, pid) for pid in pids}
    assert not standby.log.exists()
    standby.take()
    assert standby.says("started")["host"] == pids[0]
    standby.says("ready")
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in pids} == {usual}
    assert nice in ({19}, {usual}), "as low as it can be, where it can be raised again"
    os.kill(pids[0], signal.SIGKILL)
    exit_ = standby.says("exit")
    standby.process.wait(30)
    said = ["the spare imports 1", "it is decode-0#2 True"]  # then perhaps Python's resource tracker, of its semaphores
    assert standby.log.read_text().splitlines()[:2] == said
    assert (exit_["signal"], exit_["tail"][:2]) == ("SIGKILL", said)
    assert not _live(pids)
    assert not standby.lock.exists()
    assert not standby.scratch.exists()


def test_its_actor_is_gone_while_it_waits(standby: Standby) -> None:
    pids = standby.pids()
    assert standby.lock.exists()
    standby.close()
    assert not _live(pids)
    assert not standby.lock.exists()


def test_a_spare_that_cannot_import_says_why(tmp_path: Path) -> None:
    standby = Standby(tmp_path, "broken")
    exit_ = standby.says("exit")
    assert exit_["code"] == 1
    assert "no such library" in str(exit_["tail"])
    standby.close()


def test_its_reaper_is_killed(standby: Standby) -> None:
    pids = standby.pids()
    standby.process.kill()
    until = time.monotonic() + 10
    while _live(pids[:1]):
        assert time.monotonic() < until
        time.sleep(0.02)
    os.kill(pids[1], signal.SIGKILL)  # a real spare's children end by themselves, this one does not
