"""`disagg serve` with simulated engines on a real private Ray: signals while it starts, serves under load and stops.

Moments are what a deployment says, so that a slow machine sees the same ones. With DISAGG_SIGNALS=all a start gets its
signal after 0.2 s, 0.4 s, …, too. What a deployment leaves is told from what others have here: each has a mark and a
folder for temporary files of its own.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from programs import LIMIT_S, Program, disagg, groups, signal_each

from disagg.cluster.ports import free_port
from disagg.process import reaper as reaper

pytestmark = pytest.mark.alone

MARK = "DISAGG_TEST_OF_SIGNALS"
START_S = 200.0  # on a busy machine
GONE_S = 60.0
WHILE_IT_STARTS = {
    "before Ray is there": "deployment simulated",
    "while Ray starts": "",  # see _ray_has_begun
    "while engines are placed": "waits for its place",
    "while engines prove each other": "waiting for a peer",
}


@dataclass
class Run:
    program: Program
    url: str
    folder: Path
    segments: frozenset[str]
    finishes: list[str] = field(default_factory=list)
    events: list[float] = field(default_factory=list)

    @classmethod
    def start(cls, *sets: str, shell: str = "") -> Run:
        folder = Path(tempfile.mkdtemp(prefix="dt", dir="/tmp"))  # short: Ray makes sockets in it
        port = free_port()
        words = disagg("serve", "configs/simulated.yaml", "--set", "ray.address=local")
        words += [word for each in (f"frontend.port={port}", *sets) for word in ("--set", each)]
        command = ["bash", "-c", shell, *words] if shell else words
        segments = frozenset(os.listdir("/dev/shm"))
        environment = {"TMPDIR": str(folder), MARK: folder.name}
        program = Program.start(command, environment, start_new_session=True)  # a group of its own
        return cls(program, f"http://127.0.0.1:{port}", folder, segments)

    def until_said(self, words: str) -> None:
        self.program.until(lambda: words in self.program.said(), f"it does not say {words!r}", START_S)

    def until_ready(self) -> None:
        self.program.until(self._is_ready, "it is not ready", START_S)

    def stream(self, tokens: int) -> threading.Thread:
        """Asks for so many tokens, and notes when each came, and how it ended."""
        body = {"model": "smollm2", "prompt": [5, 6, 7], "max_tokens": tokens, "stream": True, "ignore_eos": True}

        def read() -> None:
            try:
                with httpx.stream(
                    "POST", f"{self.url}/v1/completions", json=body, timeout=60, trust_env=False
                ) as answer:
                    for line in answer.iter_lines():
                        self.events.append(time.monotonic())
                        if '"finish_reason":"length"' in line.replace(" ", ""):
                            self.finishes.append("length")
            except httpx.HTTPError as error:
                self.finishes.append(type(error).__name__)

        count = len(self.events)
        client = threading.Thread(target=read, daemon=True)
        client.start()
        self.program.until(lambda: len(self.events) > count + 2, "no token comes", 60)
        return client

    def assert_nothing_left(self) -> None:
        until = time.monotonic() + GONE_S
        while left := self._left():
            assert time.monotonic() < until, f"still there: {left}\n{self.program.said()}"
            time.sleep(0.1)

    def close(self) -> None:
        self.program.close()
        for pid in _marked(self.folder.name):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/ready", timeout=5, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def _left(self) -> list[str]:
        processes = [f"process {pid} {_command(pid)}" for pid in _marked(self.folder.name)]
        folders = [str(path) for path in self.folder.glob("disagg-*")]
        new = frozenset(os.listdir("/dev/shm")) - self.segments
        return processes + folders + [f"segment {name}" for name in _unused(new)]


def _marked(mark: str) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                environment = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if f"{MARK}={mark}".encode() in environment:
                found.append(int(entry))
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:160]
    except OSError:
        return ""


def _unused(segments: frozenset[str]) -> set[str]:
    """Those that no process uses: other tests of this machine have theirs."""
    if not segments:
        return set()
    existing = reaper._existing_segments()
    used = [reaper._segments_in_use(int(entry), existing) for entry in os.listdir("/proc") if entry.isdigit()]
    return (segments & set(existing.values())) - set().union(*used)


@pytest.fixture
def runs() -> Iterator[list[Run]]:
    some: list[Run] = []
    yield some
    for run in some:
        run.close()


def _reach(run: Run, moment: str) -> None:
    words = WHILE_IT_STARTS[moment]
    if words:
        run.until_said(words)
    else:  # Ray's first process has its log
        run.program.until(lambda: list(run.folder.glob("disagg-ray-*/**/session_*/logs/*")), "no Ray starts", START_S)


@pytest.mark.parametrize(
    ("first", "second"),
    [("before Ray is there", "while engines are placed"), ("while Ray starts", "while engines prove each other")],
)
def test_a_start_ends_at_the_first_signal(runs: list[Run], first: str, second: str) -> None:
    """Ctrl-C, which a terminal sends to all of the group, at the one moment; SIGTERM at the other."""
    runs += [Run.start(), Run.start()]
    for run, moment in zip(runs, (first, second), strict=True):
        _reach(run, moment)
        if moment == first:
            os.killpg(run.program.process.pid, signal.SIGINT)
        else:
            run.program.send(signal.SIGTERM)
    for run, status in zip(runs, (130, 143), strict=True):
        assert run.program.status() == status, run.program.said()
        assert "Traceback" not in run.program.said()
        run.assert_nothing_left()


def test_a_killed_start_leaves_nothing(runs: list[Run]) -> None:
    """SIGKILL of the program; at the other moment what Ctrl-\\ sends to all of the group."""
    runs += [Run.start(), Run.start()]
    _reach(runs[0], "while Ray starts")
    runs[0].program.send(signal.SIGKILL)
    _reach(runs[1], "while engines are placed")
    os.killpg(runs[1].program.process.pid, signal.SIGQUIT)
    for run, status in zip(runs, (137, 131), strict=True):
        assert run.program.status() == status
        run.assert_nothing_left()


def test_under_load_the_first_signal_ends_it_in_order_and_the_second_at_once(runs: list[Run]) -> None:
    """One whose log nobody reads any more, that was stopped with Ctrl-Z and goes on; and one without standard input."""
    unread = Run.start("deadlines.stop_s=60", shell='exec "$0" "$@" 2> >(head -n 1 >/dev/null)')
    no_input = Run.start("deadlines.stop_s=60", "decode.engine.step_s=0.05", shell='exec "$0" "$@" <&-')
    runs += [unread, no_input]
    for run in runs:
        run.until_ready()

    os.killpg(unread.program.process.pid, signal.SIGSTOP)
    time.sleep(4)  # longer than a host may be silent
    unread.stream(20).join(60)
    assert unread.finishes.pop() == "length", "frontends and engines are in groups of their own"
    os.killpg(unread.program.process.pid, signal.SIGCONT)
    client = unread.stream(300)
    engines = httpx.get(f"{unread.url}/disagg/status", timeout=15, trust_env=False).json()["engines"]
    assert [engine["incarnation"] for engine in engines] == [1] * 4, "the pause was taken for theirs"
    os.killpg(unread.program.process.pid, signal.SIGINT)
    asked_s = time.monotonic()
    client.join(60)
    assert unread.finishes == ["length"], f"{time.monotonic() - asked_s:.1f} s, status {unread.program.process.poll()}"
    assert unread.events[-1] > asked_s, "the answer was complete before it was asked to stop"
    assert unread.program.status() == 0

    client = no_input.stream(1500)  # 75 s
    no_input.program.send(signal.SIGTERM)
    no_input.until_said("stopping")
    time.sleep(0.5)  # not the same signal, sent twice
    count = len(no_input.events)
    no_input.program.until(lambda: len(no_input.events) > count, "the stream does not go on", 30)
    no_input.program.send(signal.SIGTERM)
    assert no_input.program.status() == 143, no_input.program.said()
    client.join(LIMIT_S)
    assert not client.is_alive(), "it is served still"
    assert no_input.finishes != ["length"]
    for run in runs:
        run.assert_nothing_left()


def test_the_second_signal_ends_a_stop_at_once(runs: list[Run]) -> None:
    """Also where the terminal is closed in the meantime: Ctrl-C, then SIGHUP."""
    run = Run.start()
    runs.append(run)
    run.until_ready()
    run.program.send(signal.SIGINT)
    run.until_said("stopping")
    time.sleep(0.2)
    if run.program.process.poll() is None:
        run.program.send(signal.SIGHUP)
    assert run.program.status() in (0, 129)
    run.assert_nothing_left()


@pytest.mark.skipif(os.environ.get("DISAGG_SIGNALS") != "all", reason="minutes: ask for it with DISAGG_SIGNALS=all")
def test_at_every_fifth_of_a_second_of_a_start(runs: list[Run]) -> None:
    worst_s, step_s = 0.0, float(os.environ.get("DISAGG_SIGNALS_STEP_S", "0.2"))
    moments_s = [round(step_s * n, 1) for n in range(1, int(os.environ.get("DISAGG_SIGNALS_COUNT", "60")) + 1)]
    for some_s in groups(moments_s, 3):
        side_by_side = [Run.start() for _ in some_s]
        runs += side_by_side
        signal_each([run.program for run in side_by_side], some_s, signal.SIGTERM)
        for run, at_s in zip(side_by_side, some_s, strict=True):
            served = "serving smollm2" in run.program.said()
            assert run.program.status() in ((0, 143) if served else (143,)), f"{at_s} s: {run.program.said()}"
            worst_s = max(worst_s, time.monotonic() - run.program.signalled[0])
            assert "Traceback" not in run.program.said()
        for run in side_by_side:
            run.assert_nothing_left()
    print(f"the slowest ended {worst_s:.1f} s after its signal")
