"""`make demo` without the making: the question is asked and answered, and its last line says what to type next."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path


def test_it_ends_with_the_way_of_the_answer_and_a_next_step_that_works(tmp_path: Path) -> None:
    """With simulated engines: real ones start from `make demo` and from README's lines."""
    demo = [sys.executable, "-m", "disagg.cli.demo", "simulated"]
    done = subprocess.run(demo, cwd=tmp_path, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    *_, way, _, last = done.stdout.splitlines()
    assert way.startswith("prefill prefill-")
    said, _, command = last.partition(": ")
    assert said == "to stay, until Ctrl-C"
    assert command.endswith("disagg serve simulated")
    subprocess.run([*shlex.split(command), "--dry-run"], cwd=tmp_path, check=True, capture_output=True, timeout=100)
