"""Nothing of an engine outlives its actor or its host: processes, shared memory, scratch folder."""

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

from disagg.host_spec import encode_spec

# A host that acts like an engine's: children in sessions of their own, a shared memory file, chatter, then waits.
HOST = """
import json, mmap, os, socket, subprocess, sys, time
from pathlib import Path
from disagg.process import host
from disagg.process import reaper as reaper
def run(spec, pipe):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    print("host speaks", flush=True)
    time.sleep(0.3)
    name = "disagg-test-" + str(os.getpid())
    file = open("/dev/shm/" + name, "w+b"); file.truncate(4096)
    memory = mmap.mmap(file.fileno(), 4096)
    pipe.sendall(json.dumps({"event": "ready", "child": child.pid, "segment": name}).encode() + b"\\n")
    if spec.role == "dies": time.sleep(0.05); raise RuntimeError("no such model")
    time.sleep(600)
host.run = run
from disagg.host_spec import decode_spec
pipe = socket.socket(fileno=int(sys.argv[1]))
with pipe.makefile("rb") as reader: line = reader.readline()
reaper.watch(decode_spec(line), pipe, reaper.fork_host)
"""


class Reaper(ReaperPipe):
    def __init__(self, folder: Path, role: str) -> None:
        self.scratch, self.log = folder / "scratch", folder / "engine.log"
        super().__init__(HOST, encode_spec(host_spec(self.log, self.scratch, role=role, fork=True)))


@pytest.fixture
def reaper(tmp_path: Path) -> Iterator[Reaper]:
    started = Reaper(tmp_path, "prefill")
    yield started
    started.hang_up()
    started.process.wait(30)


def _gone(*pids: object) -> bool:
    """Dead, or dead and not yet collected by whoever inherited it."""
    return not any(_lives(int(str(pid))) for pid in pids)


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _wait(condition: object, limit_s: float = 30.0) -> None:
    until = time.monotonic() + limit_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until
        time.sleep(0.02)


def test_the_actor_is_gone(reaper: Reaper) -> None:
    host, ready = reaper.says("started")["host"], reaper.says("ready")
    assert Path(f"/dev/shm/{ready['segment']}").exists()
    assert reaper.scratch.is_dir()
    reaper.hang_up()
    reaper.process.wait(30)
    assert _gone(host, ready["child"])
    assert not Path(f"/dev/shm/{ready['segment']}").exists()
    assert not reaper.scratch.exists()


def test_the_host_is_killed(reaper: Reaper) -> None:
    host, ready = reaper.says("started")["host"], reaper.says("ready")
    time.sleep(0.5)  # the segment of a host that is killed can only be known from an earlier look
    os.kill(int(str(host)), signal.SIGKILL)
    exit_ = reaper.says("exit")
    assert exit_["signal"] == "SIGKILL"
    assert exit_["tail"] == ["host speaks"]
    reaper.process.wait(30)
    assert _gone(host, ready["child"])
    assert not Path(f"/dev/shm/{ready['segment']}").exists()


def test_the_reaper_itself_is_killed(reaper: Reaper) -> None:
    host, ready = reaper.says("started")["host"], reaper.says("ready")
    reaper.process.kill()
    _wait(lambda: _gone(host))
    Path(f"/dev/shm/{ready['segment']}").unlink()  # nobody is left who could; the janitor has no list of names
    os.kill(int(str(ready["child"])), signal.SIGKILL)  # SGLang's children end by themselves, this one does not


def test_a_host_that_fails_says_why(tmp_path: Path) -> None:
    failing = Reaper(tmp_path, "dies")
    segment = failing.says("ready")["segment"]
    exit_ = failing.says("exit")
    assert exit_["code"] == 1
    assert "no such model" in str(exit_["tail"])
    assert "no such model" in failing.log.read_text()
    failing.hang_up()
    failing.process.wait(30)
    assert not Path(f"/dev/shm/{segment}").exists(), "it was there for 50 ms only"


def test_a_full_disk_for_the_log_ends_nobody(tmp_path: Path) -> None:
    (tmp_path / "engine.log").symlink_to("/dev/full")
    reaper = Reaper(tmp_path, "prefill")
    said = reaper.says_all("started", "log", "ready")
    assert "No space left on device" in str(said["log"]["trouble"])
    engine = said["started"]["host"], said["ready"]["child"]
    assert not _gone(*engine)
    reaper.hang_up()
    reaper.process.wait(30)
    assert _gone(*engine)


def test_a_reaper_that_cannot_begin_says_why(tmp_path: Path) -> None:
    """At today's head: "its reaper vanished"."""
    (tmp_path / "scratch").write_text("a file, where a folder should be")
    spec = host_spec(tmp_path / "engine.log", tmp_path / "scratch" / "decode-0-1", role="prefill", fork=True)
    failing = ReaperPipe(HOST, encode_spec(spec))
    exit_ = failing.says("exit")
    assert "its reaper failed: " in str(exit_["why"])
    assert str(tmp_path / "scratch") in str(exit_["why"])
    failing.hang_up()
    failing.process.wait(30)


def test_sigterm_from_a_stopped_job_does_not_cut_the_clean_up_short(reaper: Reaper) -> None:
    ready = reaper.says("ready")
    reaper.process.terminate()
    time.sleep(0.3)
    assert reaper.process.poll() is None
    reaper.hang_up()
    reaper.process.wait(30)
    assert _gone(ready["child"])
