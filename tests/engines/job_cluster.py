"""`ray start --head` with token authentication, and jobs submitted to it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from disagg.cluster.ports import free_port


@contextmanager
def ray_cluster(home: Path) -> Iterator[dict[str, str]]:
    """Its environment for clients. `home`: of its user, with the token."""
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
    run(["ray", "get-auth-token", "--generate"], environment)
    start = ["ray", "start", "--head", "--node-ip-address=127.0.0.1", f"--port={gcs}", "--num-cpus=2"]
    start += [f"--dashboard-port={dashboard}", f"--temp-dir={folder}", "--object-store-memory=100000000"]
    # Its agent's usual port may still be held by that of a private cluster which is just ending.
    run([*start, f"--dashboard-agent-listen-port={agent}", "--disable-usage-stats"], environment)
    environment |= {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    try:
        submit(["ray", "job", "submit", "--", "true"], environment)  # the cluster's own late starters are up then
        yield environment
    finally:
        run(["ray", "stop", "--force"], environment)
        subprocess.run(["rm", "-rf", str(folder)], check=True)


def submit(command: list[str], environment: dict[str, str], limit_s: float = 60, job_s: float = 120) -> str:
    """What it says. A cluster that has just started has no agent that takes jobs yet, and says so."""
    until = time.monotonic() + limit_s
    while True:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=job_s, check=False)
        if done.returncode == 0:
            return done.stdout + done.stderr
        assert "No available agent" in done.stderr, done.stderr
        assert time.monotonic() < until, done.stderr
        time.sleep(1)


def run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout[-3000:]} {done.stderr[-3000:]}"
    return done.stdout + done.stderr


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
