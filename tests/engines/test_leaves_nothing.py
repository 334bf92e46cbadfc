"""However a deployment ends, nothing of it stays: no process, shared memory, port or folder."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from deployment import Traces, assert_nothing_left, end, launch, serving

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


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """`ray start --head` with token authentication; its environment for clients."""
    home = tmp_path_factory.mktemp("home")
    folder = Path("/tmp") / f"disagg-test-ray-{os.getpid()}"
    dashboard, gcs, agent = free_port(), free_port(), free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    cache = os.environ.get("DISAGG_CACHE", str(Path("~/.cache/disagg").expanduser()))
    environment |= {
        "HOME": str(home),
        "DISAGG_CACHE": cache,
        "RAY_AUTH_MODE": "token",
        "RAY_TMPDIR": str(folder),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "no_proxy": "127.0.0.1,localhost",
    }
    _run(["ray", "get-auth-token", "--generate"], environment)
    start = ["ray", "start", "--head", "--node-ip-address=127.0.0.1", f"--port={gcs}", "--num-cpus=2"]
    start += [f"--dashboard-port={dashboard}", f"--temp-dir={folder}", "--object-store-memory=100000000"]
    # Its agent's usual port may still be held by that of a private cluster which is just ending.
    _run([*start, f"--dashboard-agent-listen-port={agent}", "--disable-usage-stats"], environment)
    environment |= {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    try:
        _submit(["ray", "job", "submit", "--", "true"], environment)  # the cluster's own late starters are up then
        yield environment
    finally:
        _run(["ray", "stop", "--force"], environment)
        subprocess.run(["rm", "-rf", str(folder)], check=True)


def test_submit_serves_and_stop_takes_all_of_it_down(cluster: dict[str, str], tmp_path: Path) -> None:
    """Its working folder has files with names of ours: they are not imported, here or on Ray's workers."""
    import httpx

    for name in ("decode", "prefill", "transfer", "disagg", "sglang"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name}.py of the user was imported')\n")
    shutil.copy("configs/local-cpu.yaml", tmp_path)

    before, port = Traces.now(), free_port()
    job = f"disagg-{port}"
    submit = ["ray", "job", "submit", "--submission-id", job, "--no-wait", "--working-dir", str(tmp_path)]
    # As the installed `disagg` does; that of this environment may be older than its declaration.
    serve = [sys.executable, "-P", "-m", "disagg_start", "serve", "local-cpu.yaml", "--set", f"frontend.port={port}"]
    _submit([*submit, "--", *serve], cluster)
    url = f"http://127.0.0.1:{port}"
    until = time.monotonic() + 150
    while not _is_ready(url):
        logs = _run(["ray", "job", "logs", job], cluster)
        assert time.monotonic() < until, logs
        time.sleep(1)
    ask = {"model": "smollm2", "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
    answer = httpx.post(f"{url}/v1/completions", json=ask, timeout=60, trust_env=False).json()
    assert "Paris" in answer["choices"][0]["text"]
    assert "prefill-0#1 ready" in _run(["ray", "job", "logs", job], cluster)
    _run(["ray", "job", "stop", job], cluster)
    assert_nothing_left(before, 30)


def test_a_job_that_is_stopped_while_it_starts(cluster: dict[str, str]) -> None:
    before, job = Traces.now(), f"disagg-{free_port()}"
    submit = ["ray", "job", "submit", "--submission-id", job, "--no-wait", "--working-dir", "configs"]
    _submit([*submit, "--", "disagg", "serve", "simulated.yaml", "--set", f"frontend.port={free_port()}"], cluster)
    until = time.monotonic() + 60
    while "deployment simulated" not in (logs := _run(["ray", "job", "logs", job], cluster)):
        assert time.monotonic() < until, logs
    _run(["ray", "job", "stop", job], cluster)
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


def _submit(command: list[str], environment: dict[str, str], limit_s: float = 60) -> None:
    """A cluster that has just started has no agent that takes jobs yet, and says so."""
    until = time.monotonic() + limit_s
    while True:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode == 0:
            return
        assert "No available agent" in done.stderr, done.stderr
        assert time.monotonic() < until, done.stderr
        time.sleep(1)


def _run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout[-3000:]} {done.stderr[-3000:]}"
    return done.stdout + done.stderr


def _is_ready(url: str) -> bool:
    import httpx

    try:
        return httpx.get(f"{url}/ready", timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
