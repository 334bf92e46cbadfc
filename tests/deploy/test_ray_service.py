"""What keeps `disagg serve` in a RayService: its end is a failed health check, and it does not outlive its keeper."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from disagg.deploy.ray_service import ServeProcess

LIMIT_S = 20.0
KEEPER = """
import sys, time
from disagg.deploy.ray_service import ServeProcess
process = ServeProcess(sys.argv[1:])
time.sleep(60)
"""


def wait_for(path: Path) -> str:
    until = time.monotonic() + LIMIT_S
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < until, f"no {path.name} after {LIMIT_S} s"
        time.sleep(0.02)
    return path.read_text().strip()


def noting(folder: Path) -> list[str]:
    """Writes its pid, and on SIGTERM that it was told."""
    script = f"trap 'echo told > {folder}/told; exit 0' TERM; echo $$ > {folder}/pid; while true; do sleep 0.05; done"
    return ["bash", "-c", script]


def test_its_end_fails_the_health_check_with_its_status(tmp_path: Path) -> None:
    process = ServeProcess(["bash", "-c", f"trap 'echo over > {tmp_path}/end' EXIT; exit 2"])
    wait_for(tmp_path / "end")
    process.stop(LIMIT_S)
    with pytest.raises(RuntimeError, match="ended with 2"):
        process.check()


def test_stopping_it_is_in_order(tmp_path: Path) -> None:
    process = ServeProcess(noting(tmp_path))
    wait_for(tmp_path / "pid")
    process.check()
    process.stop(LIMIT_S)
    assert wait_for(tmp_path / "told") == "told"
    with pytest.raises(RuntimeError):
        process.check()


def test_one_that_does_not_heed_is_made_to_end() -> None:
    process = ServeProcess(["bash", "-c", "trap '' TERM; while true; do sleep 0.05; done"])
    time.sleep(0.2)
    process.stop(limit_s=0.2)
    with pytest.raises(RuntimeError, match="-9"):
        process.check()


def test_it_is_told_when_its_keeper_is_killed(tmp_path: Path) -> None:
    keeper = subprocess.Popen([sys.executable, "-c", KEEPER, *noting(tmp_path)], env=os.environ | {"PYTHONPATH": "."})
    pid = int(wait_for(tmp_path / "pid"))
    keeper.kill()
    keeper.wait()
    assert wait_for(tmp_path / "told") == "told"
    until = time.monotonic() + LIMIT_S
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert not Path(f"/proc/{pid}").exists()
