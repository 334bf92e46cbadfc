"""SGLang's own HTTP server on this machine's cores, as its wheel starts it: what our answers are compared with.

Ours in it are the stand-ins for CUDA packages (disagg/cpu_profile) and the arguments that our engines get, no plugin:
pages of one token need no kernel, and one engine moves no KV.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from disagg.cluster.ports import free_port
from disagg.config.schema import Deadlines
from disagg.cpu_profile.paths import standin_environment
from disagg.models.resolve import resolve_model
from disagg.process import reaper
from disagg.roles import Role
from disagg.sglang.arguments import DEVICE_DEFAULTS, engine_environment

READY_S = 300.0  # on a busy machine; some 40 s on an idle one
LOOK_S = 0.2


@dataclass
class OwnServer:
    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def wait_until_ready(self) -> OwnServer:
        end = time.monotonic() + READY_S
        while not self._is_ready():
            if self.process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"SGLang's server did not start:\n{self.log.read_text()[-4000:]}")
            time.sleep(LOOK_S)
        return self

    def _is_ready(self) -> bool:
        """/health is 200 from the first token on; before, it is 503."""
        try:
            return httpx.get(f"{self.url}/health", timeout=10, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False


@contextlib.contextmanager
def starting(model: str, *more: str) -> Iterator[OwnServer]:
    """It has been started when the body begins, and is waited for by whoever needs it."""
    port, log = free_port(), Path(tempfile.mkstemp(prefix="sglang-test-", suffix=".log")[1])
    command = [
        sys.executable,
        "-m",
        "sglang.launch_server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--device",
        "cpu",
    ]
    command += ["--model-path", str(resolve_model(model)), "--served-model-name", model]
    for name, value in DEVICE_DEFAULTS["cpu"].items():
        command += ["--" + name.replace("_", "-"), *([] if value is True else [str(value)])]
    environment = standin_environment(os.environ) | engine_environment(
        Role.AGGREGATED, device="cpu", deadlines=Deadlines()
    )
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *more], env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield OwnServer(process, f"http://127.0.0.1:{port}", log)
    finally:
        segments = _segments_of(process.pid)
        with contextlib.suppress(ProcessLookupError):  # its schedulers are in its session
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
        for segment in segments:
            (reaper.SHARED_MEMORY / segment).unlink(missing_ok=True)
        log.unlink()


def _segments_of(session: int) -> set[str]:
    """Shared memory of the processes of a session: killed ones leave theirs."""
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    return reaper._segments_of([pid for pid in pids if _session_of(pid) == session])


def _session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0
