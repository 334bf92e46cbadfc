"""What a fixture has started ends with a test run that gets SIGTERM, as `timeout` and a CI server send it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

LIMIT_S = 40.0
SUITE = """
import subprocess, time
import pytest

@pytest.fixture
def started():
    child = subprocess.Popen(["sleep", "300"])
    yield child
    child.kill()
    child.wait()

def test_that_waits(started):
    with open("pid", "w") as file:
        file.write(f"{started.pid} ")
    time.sleep(300)
"""


@pytest.mark.timeout(2 * LIMIT_S)
@pytest.mark.parametrize("processes", ["0", "1"])
@pytest.mark.parametrize("sigint", [signal.SIG_DFL, signal.SIG_IGN], ids=["", "in the background of a script"])
def test_what_a_fixture_started_ends_with_a_terminated_run(
    tmp_path: Path, processes: str, sigint: signal.Handlers
) -> None:
    shutil.copy(Path(__file__).parents[1] / "conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    pid, until = tmp_path / "pid", time.monotonic() + LIMIT_S
    with_sigint = f"import os, signal, sys; signal.signal(signal.SIGINT, signal.Handlers({int(sigint)})); "
    command = f"{with_sigint}os.execv(sys.executable, [sys.executable, '-m', 'pytest', '-q', '-n', '{processes}'])"
    run = subprocess.Popen([sys.executable, "-c", command], cwd=tmp_path)
    try:
        while not (pid.exists() and pid.read_text().endswith(" ")):
            assert time.monotonic() < until
            assert run.poll() is None
            time.sleep(0.05)
        run.send_signal(signal.SIGTERM)
        assert run.wait(LIMIT_S) == pytest.ExitCode.INTERRUPTED
        while psutil.pid_exists(int(pid.read_text())):  # a worker may still be at it
            assert time.monotonic() < until
            time.sleep(0.05)
    finally:
        run.kill()
        run.wait()
        if pid.exists() and psutil.pid_exists(child := int(pid.read_text() or 0)):
            psutil.Process(child).kill()
