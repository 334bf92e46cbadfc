"""A spare kit waits quietly, becomes the engine that takes it, and is gone with its actor."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests share warden_pipe.py; they are not a package

from warden_pipe import WardenPipe, host_spec

from disagg.host_spec import KitSpec, Spare, encode_kit, encode_spec

# A spare host that has nothing to import.
WARDEN = """
import json, multiprocessing, os, socket, subprocess, sys, time
from disagg.process import standby_reaper as spare_warden
from disagg.host_spec import decode_kit, decode_spec
def become_spare(kit, pipe, order):
    lock = multiprocessing.get_context("spawn").Lock()  # as SGLang's children have them
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("the spare imports", kit.environment["A"], flush=True)
    if kit.environment["A"] == "broken": raise ImportError("no such library")
    said = {"event": "spare", "pids": [os.getpid(), child.pid], "lock": lock._semlock.name}
    pipe.sendall(json.dumps(said).encode() + b"\\n")
    with order.makefile("rb") as reader: spec = decode_spec(reader.readline())
    print("it is", spec.life, os.path.isdir(spec.scratch), flush=True)
    pipe.sendall(b'{"event": "ready"}\\n')
    time.sleep(600)
spare_warden._become_spare = become_spare
pipe = socket.socket(fileno=int(sys.argv[1]))
with pipe.makefile("rb", buffering=0) as reader: line = reader.readline()
spare_warden.keep(decode_kit(line), pipe)
"""


class Kit(WardenPipe):
    def __init__(self, folder: Path, environment: str = "1") -> None:
        self.log, self.scratch = folder / "engine.log", folder / "run" / "scratch"
        super().__init__(WARDEN, encode_kit(KitSpec(environment={"A": environment}, spares=(Spare("json"),))))

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
def kit(tmp_path: Path) -> Iterator[Kit]:
    made = Kit(tmp_path)
    yield made
    made.close()


def _live(pids: list[int]) -> bool:
    return any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)


def test_it_becomes_the_engine_and_its_early_words_are_in_the_engines_log(kit: Kit) -> None:
    pids = kit.pids()
    nice = {os.getpriority(os.PRIO_PROCESS, pid) for pid in pids}
    assert not kit.log.exists()
    kit.take()
    assert kit.says("started")["host"] == pids[0]
    kit.says("ready")
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in pids} == {usual}
    assert nice in ({19}, {usual}), "as low as it can be, where it can be raised again"
    os.kill(pids[0], signal.SIGKILL)
    exit_ = kit.says("exit")
    kit.process.wait(30)
    assert kit.log.read_text() == "the spare imports 1\nit is decode-0#2 True\n"
    assert (exit_["status"], exit_["tail"]) == ("killed by SIGKILL", ["the spare imports 1", "it is decode-0#2 True"])
    assert not _live(pids)
    assert not kit.lock.exists()
    assert not kit.scratch.exists()


def test_its_actor_is_gone_while_it_waits(kit: Kit) -> None:
    pids = kit.pids()
    assert kit.lock.exists()
    kit.close()
    assert not _live(pids)
    assert not kit.lock.exists()


def test_a_spare_that_cannot_import_says_why(tmp_path: Path) -> None:
    kit = Kit(tmp_path, "broken")
    exit_ = kit.says("exit")
    assert exit_["status"] == "exit status 1"
    assert "no such library" in str(exit_["tail"])
    kit.close()


def test_its_warden_is_killed(kit: Kit) -> None:
    pids = kit.pids()
    kit.process.kill()
    until = time.monotonic() + 10
    while _live(pids[:1]):
        assert time.monotonic() < until
        time.sleep(0.02)
    os.kill(pids[1], signal.SIGKILL)  # a real spare's children end by themselves, this one does not
