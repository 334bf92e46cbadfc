"""A process that logs goes on when its standard error is a pipe that nobody reads, a full disk, or closed."""

from __future__ import annotations

import os
import subprocess
import sys

from disagg.telemetry.stderr_log import LINES_MAX

LINES = LINES_MAX + 5_000  # more than wait, and more than a pipe holds
PROGRAM = f"""
import logging
from disagg.telemetry.stderr_log import log_to_stderr
log_to_stderr("%(message)s")
for number in range({LINES}):
    logging.info("line %d %s", number, "x" * 100)
print("served on", flush=True)
input()
logging.info("the last line")
"""


def start(stderr: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
    )


def test_an_unread_pipe_stops_nobody_and_a_late_reader_is_told_what_it_missed() -> None:
    with start(subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "served on\n"  # with plain logging this line never comes
        process.stdin.write("\n")
        process.stdin.close()
        said = process.stderr.read().splitlines()
    assert said[0].startswith("line 0 ")
    dropped = [int(line.split()[1]) for line in said if line.startswith("[disagg] ")]
    lines = [line for line in said if not line.startswith("[disagg] ")]
    assert sum(dropped) > 0
    assert LINES_MAX < sum(dropped) + len(lines) <= LINES + 1
    assert process.returncode == 0


def test_an_unread_pipe_does_not_keep_the_process_from_ending() -> None:
    with start(subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        process.stdin.write("\n")
        process.stdin.close()
        assert process.wait(60) == 0


def test_a_full_disk_and_a_closed_pipe_are_nobodys_end() -> None:
    closed_end, write_end = os.pipe()
    os.close(closed_end)
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        for stderr in (full, write_end):
            with start(stderr) as process:
                assert process.communicate("\n", timeout=60)[0] == "served on\n"
                assert process.returncode == 0
    finally:
        os.close(full)
        os.close(write_end)


def test_what_is_read_comes_whole_and_in_order() -> None:
    program = PROGRAM.replace(str(LINES), "500")
    done = subprocess.run([sys.executable, "-c", program], input="\n", capture_output=True, text=True, timeout=60)
    said = done.stderr.splitlines()
    assert [line.split()[1] for line in said[:-1]] == [str(number) for number in range(500)]
    assert said[-1] == "the last line"
