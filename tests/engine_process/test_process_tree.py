"""Whom a process has started, whichever of its threads did."""

from __future__ import annotations

import os
import subprocess
import sys

from disagg.process_tree import children, tree
from disagg.sglang.children import pids_by_role

# A process whose second thread starts one that starts another; each says its id.
PROGRAM = """
import os, subprocess, sys, threading, time
last = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"]
middle = "import os, subprocess; print(os.getpid(), flush=True); subprocess.run(" + repr(last) + ")"
thread = threading.Thread(target=lambda: subprocess.run([sys.executable, "-c", middle]))
thread.start()
thread.join()
"""


def test_what_a_thread_has_started_is_found_with_its_own_children() -> None:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    try:
        middle, last = int(process.stdout.readline()), int(process.stdout.readline())
        assert tree(process.pid) == [middle, last]
        assert children(middle) == [last]
    finally:
        os.killpg(process.pid, 9)
        process.wait()
        process.stdout.close()
    assert tree(process.pid) == []


def test_processes_are_told_apart_by_their_titles_and_one_that_has_ended_is_none() -> None:
    title = "import time; time.sleep(60)"
    found = [subprocess.Popen([sys.executable, "-c", title, name]) for name in ("sglang::scheduler_TP0", "detokenizer")]
    gone = subprocess.Popen(["true"])
    gone.wait()
    other = subprocess.Popen(["sleep", "60"])
    try:
        scheduler, detokenizer = (process.pid for process in found)
        assert pids_by_role([scheduler, gone.pid, detokenizer, other.pid]) == {
            "schedulers": [scheduler],
            "detokenizers": [detokenizer],
            "others": [other.pid],
        }
    finally:
        for process in (*found, other):
            process.kill()
            process.wait()
