"""A deployment whose registry is in etcd, and etcd out of its reach for longer than its lease."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from deployment import Deployment, serving
from streams import Stream, wait_until

sys.path.insert(0, str(Path(__file__).parents[1] / "registry"))
from etcd_here import Proxy, etcd, proxy

from disagg.simulated_engine.tokens import answer

LEASE_S, AWAY_S = 3, 8.0


@contextmanager
def running_proxy(to: str) -> Iterator[tuple[Proxy, str, asyncio.AbstractEventLoop]]:
    """In a thread of its own, beside a test that blocks."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(10)

    manager = proxy(to)
    made, here = run(manager.__aenter__())
    try:
        yield made, here, loop
    finally:
        run(manager.__aexit__(None, None, None))
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _listed(endpoint: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "disagg.cli.main", "list", "--registry", f"etcd:{endpoint}", "--json"]
    found: list[dict[str, Any]] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


def _is_whole(endpoint: str) -> bool:
    listed = _listed(endpoint)
    states = [engine["state"] for each in listed for engine in each["engines"]]
    return states == ["ready"] * 4 and len(listed[0]["frontends"]) == 1


def _ask(deployment: Deployment) -> bool:
    ids = deployment.complete([5, 6, 7], max_tokens=5, ignore_eos=True, return_token_ids=True)["choices"][0][
        "token_ids"
    ]
    return bool(ids == answer([5, 6, 7], 5, ignore_eos=True))


@pytest.mark.timeout(180)
def test_requests_and_known_engines_do_not_notice(tmp_path: Path) -> None:
    """Its keys are gone meanwhile for whoever asks etcd; then they are there again, and nothing was restarted."""
    with etcd(tmp_path) as (member,), running_proxy(member.endpoint) as (between, here, loop):
        there = ("registry.kind=etcd", f"registry.endpoints=[{here}]", f"registry.lease_s={LEASE_S}")
        with serving("configs/simulated.yaml", "ray.address=local", *there) as deployment:
            wait_until(lambda: _is_whole(member.endpoint), 10)
            stream = Stream(deployment, [5, 6, 8], 1500)  # 15 s
            wait_until(lambda: len(stream.events) > 5, 30)
            loop.call_soon_threadsafe(between.cut)
            until_s, answered = time.monotonic() + AWAY_S, 0
            while time.monotonic() < until_s:
                assert _ask(deployment)
                answered += 1
            assert answered > 10
            assert _listed(member.endpoint) == [], "the lease has run out"
            loop.call_soon_threadsafe(between.mend)
            wait_until(lambda: _is_whole(member.endpoint), 15)
            assert stream.whole(60)[0] == answer([5, 6, 8], 1500, ignore_eos=True)
            engines = deployment.get("/disagg/status")["engines"]
            assert [(engine["incarnation"], engine["restarts"]) for engine in engines] == [(1, 0)] * 4
            (before,) = _listed(member.endpoint)[0]["frontends"]
            os.kill(before["pid"], signal.SIGKILL)
            wait_until(lambda: _is_whole(member.endpoint) and _listed(member.endpoint)[0]["frontends"] != [before], 30)
            wait_until(deployment.all_ready, 10)
            assert _ask(deployment)
            assert "fork" not in deployment.said()
        assert _listed(member.endpoint) == []
