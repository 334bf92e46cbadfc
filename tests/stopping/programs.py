"""Programs that get signals, side by side: each is started, gets its signals when it heeds them, and is judged."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

LIMIT_S = 15.0  # from a signal to the end: three seconds are meant, on a machine that has other things to do
HEEDS_S = 60.0


@dataclass
class Program:
    process: subprocess.Popen[bytes]
    output: Path
    signalled: list[float] = field(default_factory=list)

    @classmethod
    def start(cls, command: Sequence[str], environment: Mapping[str, str] | None = None, **more: object) -> Program:
        """It heeds signals as from a terminal, also where the tests themselves were started with nohup or by &."""
        more.setdefault("preexec_fn", heed_all)
        output = Path(tempfile.mkstemp(prefix="disagg-test-", suffix=".log")[1])
        with output.open("wb") as file:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | dict(environment or {}),
                **more,  # type: ignore[call-overload]
            )
        return cls(process, output)

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def until_it_heeds(self) -> None:
        """Returns when SIGTERM has a handler of its own: before that the interpreter itself is starting."""
        self.until(lambda: heeds(self.process.pid, signal.SIGTERM), "it heeds no signal")

    def until(self, holds: Callable[[], object], what: str, limit_s: float = HEEDS_S) -> None:
        until = time.monotonic() + limit_s
        while not holds():
            assert self.process.poll() is None, f"it has ended with {self.process.returncode}:\n{self.said()}"
            assert time.monotonic() < until, f"{what}:\n{self.said()}"
            time.sleep(0.01)

    def send(self, number: int) -> None:
        self.process.send_signal(number)
        self.signalled.append(time.monotonic())

    def status(self, limit_s: float = LIMIT_S) -> int:
        """As a shell has it, waited for at most so long."""
        try:
            status = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"it does not end within {limit_s} s:\n{self.said()}") from None
        return status if status >= 0 else 128 - status

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.output.unlink(missing_ok=True)


def signal_each(programs: Sequence[Program], moments_s: Sequence[float], number: int) -> None:
    """Each gets the signal so long after it began to heed signals; one that has ended before gets none."""
    heeded_s: dict[int, float] = {}
    waiting = dict(enumerate(programs))
    until = time.monotonic() + HEEDS_S + max(moments_s)
    while waiting:
        assert time.monotonic() < until, "they heed no signal"
        for index, program in list(waiting.items()):
            if index not in heeded_s and heeds(program.process.pid, signal.SIGTERM):
                heeded_s[index] = time.monotonic()
            is_time = index in heeded_s and time.monotonic() - heeded_s[index] >= moments_s[index]
            if is_time and program.process.poll() is None:
                program.send(number)
            if is_time or program.process.poll() is not None:
                del waiting[index]
        time.sleep(0.01)


def groups(moments_s: Sequence[float], size: int) -> list[Sequence[float]]:
    """What is run side by side."""
    return [moments_s[first : first + size] for first in range(0, len(moments_s), size)]


def disagg(*words: str) -> list[str]:
    return [sys.executable, "-m", "disagg.cli.main", *words]


def heeds(pid: int, number: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def heed_all() -> None:
    """In a child, before its program: one that is ignored stays so in it."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
