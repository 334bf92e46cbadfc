"""What the host sees of scheduler processes: their beats, their state, and how long they have been so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from disagg.sglang.heartbeat import Beat, BeatWriter, read_beats
from disagg.sglang.rank_watch import ProcessLook, RankWatch, look_at_process


def beat(**changes: float) -> Beat:
    values = dict.fromkeys(Beat._fields, 0.0) | {"pid": os.getpid(), "step_longest_s": 0.1, "steps": 9} | changes
    return Beat(**values)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def _wait_for_state(pid: int, states: str) -> None:
    until = time.monotonic() + 30
    while look_at_process(pid).state not in states:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_the_state_of_a_process(child: subprocess.Popen[bytes]) -> None:
    _wait_for_state(child.pid, "S")
    child.send_signal(signal.SIGSTOP)
    _wait_for_state(child.pid, "T")
    child.kill()
    _wait_for_state(child.pid, "Z")
    child.wait()
    assert look_at_process(child.pid).state == ""


def test_the_cpu_time_of_a_process() -> None:
    before, began_s = look_at_process(os.getpid()).cpu_s, time.process_time()
    while time.process_time() < began_s + 0.2:
        pass
    grown_s, spent_s = look_at_process(os.getpid()).cpu_s - before, time.process_time() - began_s
    assert spent_s - 0.05 < grown_s < spent_s + 0.05  # the kernel counts in hundredths


def test_a_step_is_measured_from_round_to_round_and_the_longest_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr("disagg.sglang.heartbeat.time", SimpleNamespace(monotonic=lambda: now_s))
    writer = BeatWriter(tmp_path, beat(at_s=now_s, step_longest_s=0.0), overlaps=False)
    for tokens, pause_s in ((8, 0.25), (256, 0.5), (0, 1.0), (4, 0.125)):
        writer.came_round()
        if tokens:
            writer.batch_begins(tokens)
        now_s += pause_s
    (seen,) = read_beats(tmp_path)
    assert (seen.batch_tokens, seen.step_longest_tokens) == (4, 256)
    assert seen.step_longest_s == 0.5, "a round without a batch is no step"
    writer.came_round()
    (seen,) = read_beats(tmp_path)
    assert seen.batch_tokens == 0
    assert seen.at_s == now_s


def test_an_overlapping_scheduler_waits_for_the_batch_before(tmp_path: Path) -> None:
    writer = BeatWriter(tmp_path, beat(), overlaps=True)
    for tokens in (8192, 4):
        writer.came_round()
        writer.batch_begins(tokens)
    assert read_beats(tmp_path)[0].batch_tokens == 8192
    writer.came_round()
    writer.batch_begins(4)
    assert read_beats(tmp_path)[0].batch_tokens == 4


class Scene:
    """A watch on one process that does what a test says, on a clock that a test moves."""

    def __init__(self, folder: Path) -> None:
        self.now_s, self.looks = 1000.0, ProcessLook("S", 7.0)
        self.folder = folder
        self.watch = RankWatch(folder, now_s=lambda: self.now_s, process=lambda _pid: self.looks)
        self.beats()

    def beats(self) -> None:
        BeatWriter(self.folder, beat(at_s=self.now_s), overlaps=False)

    def passes(self, seconds: float, *, cpu_share: float = 0.0) -> str:
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.now_s += 0.5
            self.looks = ProcessLook(self.looks.state, self.looks.cpu_s + 0.5 * cpu_share)
            self.watch.sample()
        return self.watch.health[0].sick


def test_a_loop_that_sleeps_is_found_within_four_seconds_and_is_well_at_its_next_round(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    assert scene.passes(3.0) == ""
    assert "computes nothing" in scene.passes(0.5)
    scene.beats()
    assert scene.passes(0.5) == ""


def test_cpu_time_from_before_the_last_round_does_not_count(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.passes(2.0, cpu_share=1.0)
    scene.beats()
    assert scene.passes(3.0) == ""
    assert "computes nothing" in scene.passes(1.0)


def test_stopped_for_more_than_a_second(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.looks = ProcessLook("T", 7.0)
    assert scene.passes(1.5) == ""
    assert "stopped" in scene.passes(0.5)
    scene.looks = ProcessLook("R", 7.0)
    assert scene.passes(0.5) == ""


def test_a_process_stopped_while_its_beat_is_new_counts_from_when_it_stopped(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.looks = ProcessLook("T", 7.0)
    scene.passes(1.0)
    scene.beats()  # the last one it wrote, seen late
    assert "stopped" in scene.passes(1.0)


def test_time_that_the_host_itself_did_not_see_is_not_held_against_a_scheduler(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.passes(0.5)
    scene.now_s += 60  # this process was stopped, as the scheduler was
    assert scene.passes(2.0) == ""
    assert scene.passes(3.0) != ""


def test_a_scheduler_that_was_killed(tmp_path: Path, child: subprocess.Popen[bytes]) -> None:
    BeatWriter(tmp_path, beat(pid=child.pid, at_s=time.monotonic()), overlaps=False)
    watch = RankWatch(tmp_path)
    watch.sample()
    assert watch.health[0].sick == ""
    child.kill()
    _wait_for_state(child.pid, "Z")
    watch.sample()
    assert watch.health[0].sick == "its scheduler process is gone"


@pytest.mark.parametrize("thread", [False, True], ids=["of the main thread", "of another thread"])
def test_what_compiles_in_a_child_process_counts_as_computing(thread: bool) -> None:
    burn = "import time; end = time.monotonic() + 30\nwhile time.monotonic() < end: pass"
    run = f"subprocess.run([sys.executable, '-c', {burn!r}])"
    in_thread = f"thread = threading.Thread(target=lambda: {run}); thread.start(); thread.join()"
    wait = f"import subprocess, sys, threading; {in_thread if thread else run}"
    with subprocess.Popen([sys.executable, "-c", wait], start_new_session=True) as waiting:
        try:
            limit_s = time.monotonic() + 10
            while (seen := look_at_process(waiting.pid)).cpu_s < 0.5:
                assert time.monotonic() < limit_s, "its child's time is not counted"
                time.sleep(0.05)
            assert seen.state == "S"
        finally:
            os.killpg(waiting.pid, signal.SIGKILL)
