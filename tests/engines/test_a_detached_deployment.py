"""`disagg serve --detach`: a deployment outlives the job that started it, and its controller."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from deployment import Traces, assert_nothing_left
from job_cluster import is_ready, run, submit

from disagg.cli.listing import deployments_in
from disagg.cluster import janitor
from disagg.cluster.ports import free_port
from disagg.registry.keys import ROOT
from disagg.registry.shared import FileAt, open_store
from disagg.registry.store import Entry

pytestmark = pytest.mark.alone

LEASE_S = 3
LEFT = """
import ray
from ray.util import list_named_actors, placement_group_table
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
print(list_named_actors(all_namespaces=True))
print([each["name"] for each in placement_group_table().values() if each["state"] != "REMOVED"])
"""
KILL = """
import ray
ray.init(address="auto", namespace="disagg", log_to_driver=False, logging_level="ERROR")
ray.kill(ray.get_actor("disagg/{name}/controller"))
"""


@dataclass
class Detached:
    """One deployment of a cluster, whose registry is in a folder."""

    cluster: dict[str, str]
    config: Path
    registry: Path
    port: int

    def __post_init__(self) -> None:
        self.registry.mkdir(mode=0o700)  # `disagg list` looks into it before it is used

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def command(self) -> list[str]:
        sets = (f"frontend.port={self.port}", "registry.kind=file", f"registry.path={self.registry}")
        more = [word for each in (*sets, f"registry.lease_s={LEASE_S}") for word in ("--set", each)]
        return [str(self.config), *more]

    def disagg(self, *words: str, status: int = 0) -> str:
        environment = {**self.cluster, "DISAGG_URL": self.url}
        program = [sys.executable, "-P", "-m", "disagg_start", *words]
        done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def listed(self) -> dict[str, Any]:
        """As `disagg list` does."""

        async def read() -> dict[str, Entry]:
            store = open_store(FileAt(str(self.registry)))
            try:
                return (await store.snapshot(ROOT)).entries
            finally:
                await store.close()

        found = deployments_in(asyncio.run(read()))
        return found[0] if found else {"controller": [], "engines": [], "frontends": []}

    def controller(self) -> int:
        """Its process; 0: there is none."""
        there = self.listed()["controller"]
        return int(there[0].rpartition(":")[2]) if there else 0

    def kill_the_controller(self) -> None:
        """Returns when another one has taken over."""
        until(lambda: self.controller() != 0)  # its key may be away for a moment
        before = self.controller()
        assert before, "0 would be this process's group"
        os.kill(before, signal.SIGKILL)
        until(lambda: self.controller() not in (0, before) and len(self.listed()["engines"]) > 0)

    def engines(self) -> dict[str, tuple[int, str, Any]]:
        found = httpx.get(f"{self.url}/disagg/status", timeout=15, trust_env=False).json()["engines"]
        return {each["id"]: (each["incarnation"], each["state"], each["pids"]) for each in found}

    def answers(self) -> str:
        ask = {"model": "smollm2", "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
        answer = httpx.post(f"{self.url}/v1/completions", json=ask, timeout=60, trust_env=False)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["text"])


def until(what: Any, limit_s: float = 90.0) -> None:
    end_s = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < end_s
        time.sleep(0.2)


@contextmanager
def load(deployment: Detached) -> Iterator[list[str]]:
    """One request after the other, from two clients; any that fails ends the test."""
    answers: list[str] = []
    failures: list[BaseException] = []
    ends = threading.Event()

    def ask() -> None:
        while not ends.is_set():
            try:
                answers.append(deployment.answers())
            except BaseException as error:
                failures.append(error)
                return

    clients = [threading.Thread(target=ask, daemon=True) for _ in "ab"]
    for client in clients:
        client.start()
    try:
        yield answers
    finally:
        ends.set()
        for client in clients:
            client.join(90)
    assert not failures, failures
    assert len(set(answers)) == 1


def nothing_is_left(before: Traces, on: dict[str, str]) -> None:
    assert_nothing_left(before, 40)
    until(lambda: "[]\n[]\n" in run([sys.executable, "-c", LEFT], on), 20)


def test_the_job_ends_the_controller_dies_and_service_goes_on(cluster: dict[str, str], tmp_path: Path) -> None:
    shutil.copy("configs/local-cpu.yaml", tmp_path / "detached.yaml")
    it = Detached(cluster, tmp_path / "detached.yaml", tmp_path / "registry", free_port())
    before = Traces.now()
    serve = [sys.executable, "-P", "-m", "disagg_start", "serve", *it.command, "--detach"]
    said = submit(["ray", "job", "submit", "--working-dir", str(tmp_path), "--", *serve], cluster, job_s=240)
    assert "prefill-0#1 ready" in said
    assert "disagg stop" in said
    assert "Paris" in it.answers()
    engines = it.engines()
    with load(it) as answers:
        it.kill_the_controller()
        until(lambda had=len(answers): len(answers) > had + 4)  # type: ignore[misc]
    assert it.engines() == engines
    assert all(psutil.pid_exists(pid) for _, _, pids in engines.values() for pid in (pids["host"], pids["actor"]))
    assert "done" in it.disagg("apply", *it.command, "--set", "routing.retry_limit=5", "--wait")
    it.disagg("stop", "--yes", "--wait")
    nothing_is_left(before, cluster)


def test_its_controller_dies_in_the_middle_of_what_it_does(cluster: dict[str, str], tmp_path: Path) -> None:
    """Simulated engines: killed in a start, in a scale, for good; never two of them."""
    config = tmp_path / "simulated.yaml"
    config.write_text(Path("configs/simulated.yaml").read_text().replace("  cpus: 2\n", "", 1))
    it = Detached(cluster, config, tmp_path / "registry", free_port())
    before = Traces.now()
    program = [sys.executable, "-P", "-m", "disagg_start", "serve", *it.command, "--detach"]
    with (tmp_path / "log").open("wb") as log:
        serve = subprocess.Popen(program, env=cluster, stdout=log, stderr=subprocess.STDOUT)
    until(lambda: it.listed()["engines"])
    it.kill_the_controller()
    assert serve.wait(120) == 0, (tmp_path / "log").read_text()
    four = ["decode-0", "decode-1", "prefill-0", "prefill-1"]
    assert sorted(it.engines()) == four
    assert "has its controller on this cluster" in it.disagg("serve", *it.command, "--detach", status=1)

    with load(it):
        it.disagg("scale", "prefill=3")
        it.kill_the_controller()
        it.disagg("scale", "prefill=3", "--wait")
        assert sorted(it.engines()) == [*four, "prefill-2"]
        until(lambda: all(state == "ready" for _, state, _ in it.engines().values()))

        engines = it.engines()
        run([sys.executable, "-c", KILL.format(name=config.stem)], cluster)
        assert "serve --detach CONFIG" in it.disagg("stop", "--yes", status=1)
        said = it.disagg("serve", *it.command, "--detach")
        assert "takes over" in said
        assert it.engines() == engines

    (frontend,) = it.listed()["frontends"]
    (keeper,) = [
        each for each in psutil.process_iter(["cmdline"]) if "ray::FrontendKeeper" in str(each.info["cmdline"])
    ]
    keeper.kill()
    until(lambda: (now := it.listed()["frontends"]) and now != [frontend] and is_ready(it.url))
    assert janitor.process_of(frontend["pid"]) is None, "two of one number"

    run([sys.executable, "-c", KILL.format(name=config.stem)], cluster)
    it.disagg("stop", *it.command, "--yes")
    nothing_is_left(before, cluster)
