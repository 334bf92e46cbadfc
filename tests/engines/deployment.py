"""A real deployment for tests: `disagg serve` as a user starts it, and what it leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from disagg.cluster.ports import hold
from disagg.host_spec import DEPLOYMENT_VARIABLE
from disagg.models.tiny import make_tiny

READY_S = 400.0
GONE_S = 60.0  # on a busy machine; some 5 s on an idle one


@dataclass
class Deployment:
    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def get(self, path: str) -> Any:
        return httpx.get(self.url + path, timeout=15, trust_env=False).json()

    def engine(self, engine_id: str) -> dict[str, Any]:
        return next(e for e in self.get("/disagg/status")["engines"] if e["id"] == engine_id)

    def complete(self, prompt: Any, **more: Any) -> dict[str, Any]:
        body = {"model": "smollm2", "prompt": prompt, "temperature": 0, **more}
        answer = httpx.post(f"{self.url}/v1/completions", json=body, timeout=120, trust_env=False)
        assert answer.status_code == 200, answer.text
        request_id = answer.headers["x-request-id"]
        if any(engine["role"] == "prefill" for engine in self.get("/disagg/status")["engines"]):
            assert self.timeline(request_id)["kv_bytes"] > 0, "SGLang's own transfer counter did not grow"
        return {**answer.json(), "request_id": request_id}

    def timeline(self, request_id: str, until: str = "kv_bytes", limit_s: float = 5.0) -> dict[str, Any]:
        """A request's timeline, once the fact `until` is in it: prefill's last word may come after the answer's."""
        end = time.monotonic() + limit_s
        while until not in (found := self.get(f"/disagg/requests/{request_id}")) and time.monotonic() < end:
            time.sleep(0.05)
        return dict(found)

    def wait_until(self, what: Any, limit_s: float) -> float:
        """Waits until `what()` is true and returns how long that took; fails after `limit_s`."""
        began = time.monotonic()
        while not what():
            assert time.monotonic() - began < limit_s, f"not within {limit_s} s; its log:\n{self.said()}"
            time.sleep(0.05)
        return time.monotonic() - began

    def answers(self) -> bool:
        try:
            httpx.get(f"{self.url}/health", timeout=5, trust_env=False)
        except httpx.HTTPError:
            return False
        return True

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/ready", timeout=5, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def all_ready(self) -> bool:
        return all(e["state"] == "ready" for e in self.get("/disagg/status")["engines"])

    def processes(self) -> list[psutil.Process]:
        """The driver and all below it that live. (The janitor leaves the tree by a process that ends at once.)"""
        top = psutil.Process(self.process.pid)
        return [top, *(each for each in top.children(recursive=True) if each.status() != psutil.STATUS_ZOMBIE)]

    @property
    def name(self) -> str:
        """Of this run: its folders are called so."""
        frontend = next(each for each in self.processes() if "disagg.frontend.main" in each.cmdline())
        return frontend.environ()["DISAGG_DEPLOYMENT"]

    def said(self) -> str:
        return self.log.read_text(errors="replace")[-6000:]


def light() -> tuple[str, str]:
    """Settings for tests that need no words: a model with SmolLM2's tokenizer and name, and a fraction of its work."""
    return f"model.path={make_tiny('qwen3')}", "model.name=smollm2"


def launch(
    config: str,
    *sets: str,
    environment: dict[str, str] | None = None,
    prefix: tuple[str, ...] = (),
    folder: Path | None = None,
    unread: bool = False,
) -> Deployment:
    """`prefix`: a command that runs the rest as somebody else. `folder`: where it is started, as `disagg` would be.
    `unread`: what it prints goes into a pipe of the smallest size, which nobody empties."""
    held = hold("127.0.0.1", 0)  # as long as there is the Deployment: what else is started takes many
    port = held.getsockname()[1]
    log = Path(tempfile.mkstemp(prefix="disagg-test-", suffix=".log")[1])
    program = ["-P", "-m", "disagg_start"] if folder else ["-m", "disagg.cli.main"]
    command = [*prefix, sys.executable, *program, "serve", config, "--set", f"frontend.port={port}"]
    for each in sets:
        command += ["--set", each]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE if unread else output,
            stderr=subprocess.STDOUT,
            env=os.environ | (environment or {}),
            cwd=folder,
            umask=0 if folder else -1,
            pipesize=4096 if unread else -1,
        )
    deployment = Deployment(process, f"http://127.0.0.1:{port}", log)
    weakref.finalize(deployment, os.close, held.detach())
    return deployment


@contextmanager
def serving(
    config: str,
    *sets: str,
    environment: dict[str, str] | None = None,
    folder: Path | None = None,
    unread: bool = False,
) -> Iterator[Deployment]:
    deployment = launch(config, *sets, environment=environment, folder=folder, unread=unread)
    try:
        began = time.monotonic()
        while not (deployment.is_ready() and deployment.all_ready()):
            assert deployment.process.poll() is None, f"it ended:\n{deployment.said()}"
            assert time.monotonic() - began < READY_S, f"not ready:\n{deployment.said()}"
            time.sleep(0.2)
        yield deployment
    finally:
        end(deployment)


def end(deployment: Deployment, number: int = signal.SIGTERM) -> int:
    if deployment.process.poll() is None:
        deployment.process.send_signal(number)
    try:
        return deployment.process.wait(30)
    except subprocess.TimeoutExpired:
        deployment.process.kill()
        raise
    finally:
        deployment.log.unlink(missing_ok=True)
        if deployment.process.stdout is not None:
            deployment.process.stdout.close()


@dataclass(frozen=True)
class Traces:
    """What deployments leave on a machine: compared before and after."""

    processes: frozenset[str]
    shared_memory: frozenset[str]
    ports: frozenset[int]
    folders: frozenset[str]

    @classmethod
    def now(cls) -> Traces:
        marked = set()
        for entry in os.listdir("/proc"):
            try:
                environment = Path(f"/proc/{entry}/environ").read_bytes() if entry.isdigit() else b""
                command = (
                    Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode() if environment else ""
                )
            except OSError:
                continue
            ours = f"{DEPLOYMENT_VARIABLE}=".encode() in environment
            if ours or "disagg-ray-" in command or "disagg.cluster" in command:
                marked.add(f"{entry} {command[:120]}")
        listening = {
            int(line.split()[1].rpartition(":")[2], 16)
            for table in ("/proc/net/tcp", "/proc/net/tcp6")
            for line in Path(table).read_text().splitlines()[1:]
            if line.split()[3] == "0A"
        }
        folders = {p.name for p in Path(tempfile.gettempdir()).iterdir() if p.name.startswith("disagg-") and p.is_dir()}
        return cls(frozenset(marked), frozenset(os.listdir("/dev/shm")), frozenset(listening), frozenset(folders))

    def left_since(self, before: Traces) -> dict[str, Any]:
        """What is here now and was not before."""
        return {
            name: sorted(more)
            for name in ("processes", "shared_memory", "ports", "folders")
            if (more := getattr(self, name) - getattr(before, name))
        }


def assert_nothing_left(before: Traces, limit_s: float = GONE_S) -> float:
    """Waits until nothing is left; returns how long that took."""
    began = time.monotonic()
    while left := Traces.now().left_since(before):
        assert time.monotonic() - began < limit_s, f"still there after {limit_s} s: {left}"
        time.sleep(0.1)
    return time.monotonic() - began
