"""However a deployment ends, nothing of it stays: no process, shared memory, port or folder."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from deployment import Traces, assert_nothing_left, end, launch, serving
from job_cluster import is_ready, run, submit

from disagg.cluster.ports import free_port

pytestmark = pytest.mark.alone


def test_sigterm(tmp_path: Path) -> None:
    before = Traces.now()
    with serving("configs/local-cpu.yaml", "ray.address=local") as deployment:
        assert Traces.now().left_since(before).keys() >= {"processes", "ports", "folders"}, "the probe sees nothing"
        deployment.process.send_signal(signal.SIGTERM)
        assert deployment.process.wait(60) == 0
    assert_nothing_left(before, 3)


def test_sigint_while_engines_start() -> None:
    before = Traces.now()
    deployment = launch("configs/local-cpu.yaml", "ray.address=local")
    deployment.wait_until(lambda: "starting" in deployment.said(), 60)
    time.sleep(2)
    end(deployment, signal.SIGINT)
    assert_nothing_left(before, 5)


def test_sigkill_of_the_driver() -> None:
    before = Traces.now()
    with serving("configs/local-cpu.yaml", "ray.address=local") as deployment:
        deployment.process.kill()
        deployment.process.wait(60)
        assert_nothing_left(before, 15)


def test_submit_serves_and_stop_takes_all_of_it_down(cluster: dict[str, str], tmp_path: Path) -> None:
    """Its working folder has files with names of ours: they are not imported, here or on Ray's workers."""
    for name in ("decode", "prefill", "transfer", "disagg", "sglang"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name}.py of the user was imported')\n")
    shutil.copy("configs/local-cpu.yaml", tmp_path)

    before, port = Traces.now(), free_port()
    job = f"disagg-{port}"
    words = ["ray", "job", "submit", "--submission-id", job, "--no-wait", "--working-dir", str(tmp_path)]
    # As the installed `disagg` does; that of this environment may be older than its declaration.
    serve = [sys.executable, "-P", "-m", "disagg_start", "serve", "local-cpu.yaml", "--set", f"frontend.port={port}"]
    submit([*words, "--", *serve], cluster)
    url = f"http://127.0.0.1:{port}"
    until = time.monotonic() + 150
    while not is_ready(url):
        logs = run(["ray", "job", "logs", job], cluster)
        assert time.monotonic() < until, logs
        time.sleep(1)
    ask = {"model": "smollm2", "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
    answer = httpx.post(f"{url}/v1/completions", json=ask, timeout=60, trust_env=False).json()
    assert "Paris" in answer["choices"][0]["text"]
    assert "prefill-0#1 ready" in run(["ray", "job", "logs", job], cluster)
    run(["ray", "job", "stop", job], cluster)
    assert_nothing_left(before, 30)


def test_a_job_that_is_stopped_while_it_starts(cluster: dict[str, str]) -> None:
    before, job = Traces.now(), f"disagg-{free_port()}"
    words = ["ray", "job", "submit", "--submission-id", job, "--no-wait", "--working-dir", "configs"]
    submit([*words, "--", "disagg", "serve", "simulated.yaml", "--set", f"frontend.port={free_port()}"], cluster)
    until = time.monotonic() + 60
    while "deployment simulated" not in (logs := run(["ray", "job", "logs", job], cluster)):
        assert time.monotonic() < until, logs
    run(["ray", "job", "stop", job], cluster)
    assert_nothing_left(before, 30)


def test_a_submit_without_a_token_is_refused(cluster: dict[str, str], tmp_path: Path) -> None:
    stranger = cluster | {"HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled"}
    answer = subprocess.run(
        ["ray", "job", "submit", "--", "true"],
        env=stranger,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert answer.returncode != 0
    assert "auth" in (answer.stdout + answer.stderr).lower()
