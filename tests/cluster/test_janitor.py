"""The janitor finds what belongs to a deployment, whatever a process has made of its title."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from disagg.cluster import janitor

# As `ray::DashboardAgent` does it: a title over its command and environment, and a log of its own in Ray's folder.
TITLED = """
import sys, time, setproctitle
log = open(sys.argv[1] + "/agent.log", "w")
setproctitle.setproctitle("ray::SomeAgent" + " " * 5000)
print("titled", flush=True)
time.sleep(60)
"""


def test_a_process_that_hides_behind_a_title_is_swept_too(tmp_path: Path) -> None:
    folder = tmp_path / "disagg-ray-test"
    folder.mkdir()
    agent = subprocess.Popen([sys.executable, "-c", TITLED, str(folder)], stdout=subprocess.PIPE)
    assert agent.stdout is not None
    assert agent.stdout.readline() == b"titled\n"
    assert str(folder).encode() not in Path(f"/proc/{agent.pid}/cmdline").read_bytes()
    began = time.monotonic()
    while agent.pid in janitor._processes("no-such-deployment", str(folder)):
        assert time.monotonic() - began < 5
        agent.kill()
        agent.wait(5)
    assert agent.returncode is not None, "it was not found"
    agent.stdout.close()
