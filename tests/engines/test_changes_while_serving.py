"""Real engines are added, started again, changed, moved to another role and taken away under streams: none fails."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import AbstractContextManager

import pytest
from deployment import Deployment, Traces, assert_nothing_left, light, serving
from streams import Stream, all_the_time

pytestmark = [pytest.mark.alone, pytest.mark.timeout(1800)]

CONFIG, LOCAL = "configs/local-cpu-2p2d.yaml", ("ray.address=local", "ray.cpus=3")
TOKENS, PAUSE_S = 100, 1.0  # engines that start need the cores, too
CHANGE_S = 900.0  # several starts of real engines, one after the other, on two busy cores
NO_MODEL = 'decode.engine.json_model_override_args=\'{"architectures": ["NoSuchModelForCausalLM"]}\''


def disagg(deployment: Deployment, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"DISAGG_URL": deployment.url}
    command = [sys.executable, "-m", "disagg.cli.main", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=CHANGE_S, check=False)


def change(deployment: Deployment, *words: str) -> str:
    done = disagg(deployment, *words, "--wait")
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}\n{deployment.said()}"
    return done.stdout


def apply(deployment: Deployment, *sets: str) -> tuple[str, ...]:
    port = deployment.url.rpartition(":")[2]
    said = [word for each in (*LOCAL, *light(), f"frontend.port={port}", *sets) for word in ("--set", each)]
    return ("apply", CONFIG, *said)


def load(deployment: Deployment) -> AbstractContextManager[list[Stream]]:
    """Two streams at a time, one pair of them after the other."""

    def pair(before: int) -> list[Stream]:
        time.sleep(PAUSE_S)
        prompt = [*range(1000 + 7 * before, 1040 + 7 * before)]
        return [Stream(deployment, prompt, TOKENS) for _ in "ab"]

    return all_the_time(pair)


def test_everything_operators_order_under_load() -> None:
    before = Traces.now()
    with serving(CONFIG, *LOCAL, *light()) as deployment:

        def ready() -> list[str]:
            return sorted(e["id"] for e in deployment.get("/disagg/status")["engines"] if e["state"] == "ready")

        four = ["decode-0", "decode-1", "prefill-0", "prefill-1"]
        with load(deployment) as streams:
            assert "decode-2#1 is ready" in change(deployment, "scale", "decode=3")
            assert ready() == sorted([*four, "decode-2"])
            change(deployment, "scale", "decode=2")
            change(deployment, "restart", "--rolling")
            assert ready() == four
            assert deployment.engine("prefill-0")["incarnation"] == 2

            said = change(deployment, *apply(deployment, "prefill.engine.chunked_prefill_size=128"))
            assert "prefill.engine.chunked_prefill_size: 256 -> 128" in said
            assert deployment.engine("prefill-1")["incarnation"] == 3

            bad = disagg(deployment, *apply(deployment, NO_MODEL), "--wait")
            assert bad.returncode == 1
            assert "rolled back" in bad.stderr
            assert "NoSuchModelForCausalLM" in bad.stderr
            assert ready() == four

            change(deployment, "role", "prefill-1", "decode")
            assert ready() == ["decode-0", "decode-1", "decode-2", "prefill-0"]
            change(deployment, "rollback")
            assert ready() == four
        assert len(streams) > 20
        failed = [(each.status, each.error, each.failure) for each in streams if each.error or each.failure]
        assert not failed, failed
        short = [each.token_ids for each in streams if len(each.token_ids) != TOKENS]
        assert not short, short

        assert "no frontend answers any more" in change(deployment, "stop", "--yes")
        assert deployment.process.wait(60) == 0
        assert_nothing_left(before)
