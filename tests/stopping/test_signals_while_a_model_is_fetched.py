"""`disagg serve` of a hub id, and `disagg model get`: a signal ends them while bytes come, or do not."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from programs import Program, disagg, groups, signal_each
from slow_hub import slow_hub

from disagg.cluster.janitor import process_of
from disagg.models.catalogue import SMOLLM2
from tests.todays import todays

MOMENTS_S = [round(0.2 * n, 1) for n in range(21)]
SIMULATED = """
version: 1
device: simulated
model: {path: some/model}
prefill: {replicas: 1, engine: {page_size: 16}}
decode: {replicas: 1, engine: {page_size: 16}}
"""


@pytest.mark.slow  # each imports Ray
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_at_any_moment_of_a_fetch(tmp_path: Path, number: int) -> None:
    """From the first line of the program on: its imports, the hub's answers, the file's bytes."""
    config = tmp_path / "simulated.yaml"
    config.write_text(SIMULATED)
    with slow_hub() as (_hub, environment):
        environment |= {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        for moments_s in groups(todays(MOMENTS_S, 3), 3):
            programs = [Program.start(disagg("serve", str(config)), environment) for _ in moments_s]
            try:
                signal_each(programs, moments_s, number)
                for program, at_s in zip(programs, moments_s, strict=True):
                    assert program.status() == 128 + number, f"{at_s} s: {program.said()}"
                    assert "Traceback" not in program.said()
            finally:
                for program in programs:
                    program.close()


@pytest.mark.slow
def test_while_bytes_come_and_a_next_run_goes_on(tmp_path: Path) -> None:
    config = tmp_path / "simulated.yaml"
    config.write_text(SIMULATED)
    with slow_hub() as (hub, environment):
        environment |= {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        for _ in range(2):
            hub.sent_bytes = 0
            program = Program.start(disagg("serve", str(config)), environment)
            try:
                program.until(lambda: hub.sent_bytes > 2, "no byte came")
                program.send(signal.SIGTERM)
                assert program.status() == 143, program.said()
                assert "Traceback" not in program.said()
            finally:
                program.close()
    assert not list(tmp_path.glob("hub/**/snapshots/*/*")), "half a model is none"


# It says that it is there and then goes on for ever, as a download from a slow index does.
PIP = """
import os, pathlib, sys, time
pathlib.Path(os.environ["SAY_PID"]).write_text(str(os.getpid()))
into = pathlib.Path(sys.argv[sys.argv.index("--dest") + 1])
(into / "half.whl").write_text("half")
time.sleep(600)
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_model_get_leaves_no_process_and_no_half_file(tmp_path: Path, number: int, status: int) -> None:
    program, pip = _fetching(tmp_path)
    try:
        program.send(number)
        assert program.status() == status, program.said()
        assert "Traceback" not in program.said()
        _until_gone(pip)
        assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]
    finally:
        program.close()


def test_pip_does_not_outlive_a_killed_model_get(tmp_path: Path) -> None:
    program, pip = _fetching(tmp_path)
    try:
        program.send(signal.SIGKILL)
        assert program.status() == 137
        _until_gone(pip)
    finally:
        program.close()


def _fetching(tmp_path: Path) -> tuple[Program, int]:
    """`disagg model get` with a pip that never ends, and that pip's process id."""
    (tmp_path / "modules" / "pip").mkdir(parents=True)
    (tmp_path / "modules" / "pip" / "__init__.py").touch()
    (tmp_path / "modules" / "pip" / "__main__.py").write_text(PIP)
    said = tmp_path / "pid"
    environment = {
        "PYTHONPATH": str(tmp_path / "modules"),
        "SAY_PID": str(said),
        "DISAGG_CACHE": str(tmp_path / "cache"),
    }
    # What a conversion needs is not what this is about, and may not be installed.
    code = "from disagg.models import fetch; fetch.need_engine_packages = lambda where: None; "
    code += "fetch.DISK_BYTES = 0; from disagg.cli.main import main; main()"
    program = Program.start([sys.executable, "-c", code, "model", "get", SMOLLM2.name], environment)
    program.until(lambda: said.exists() and said.read_text(), "pip was not started")
    return program, int(said.read_text())


def _until_gone(pid: int) -> None:
    until = time.monotonic() + 15
    while process_of(pid) is not None:
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            raise AssertionError("pip lives on")
        time.sleep(0.02)
