"""What must not start, says why, and leaves nothing; what starts, starts where it should."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from deployment import Traces, assert_nothing_left, launch, light, serving

from disagg.models.resolve import resolve_model

pytestmark = pytest.mark.alone

LOCAL = "ray.address=local"


def _fails(
    *sets: str,
    environment: dict[str, str] | None = None,
    limit_s: float = 120,
    config: str = "configs/local-cpu.yaml",
    exit_status: int = 1,
) -> str:
    """Serves, expects it to end so and nothing left; returns what was said."""
    before = Traces.now()
    deployment = launch(config, LOCAL, *sets, environment=environment)
    status = deployment.process.wait(limit_s)
    said = deployment.said()
    deployment.log.unlink()
    assert status == exit_status, said
    assert_nothing_left(before, 5)
    return said


def test_a_port_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = _fails(f"frontend.port={port}", limit_s=30)
    assert "frontend.port" in said
    assert str(port) in said
    assert "choose another" in said


def test_a_missing_model_folder(tmp_path: Path) -> None:
    said = _fails(f"model.path={tmp_path}/nothing", limit_s=30)
    assert f"{tmp_path}/nothing" in said


def test_an_engine_that_dies_while_starting_shows_its_last_lines(tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(resolve_model("smollm2"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["NoSuchModelForCausalLM"]}))
    said = _fails(f"model.path={folder}")
    assert "NoSuchModelForCausalLM" in said
    assert "last lines" in said


def test_a_nixl_that_cannot_be_loaded(tmp_path: Path) -> None:
    for name in ("nixl", "nixl_cu12"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('this NIXL is broken')")
    said = _fails(environment={"PYTHONPATH": str(tmp_path)})
    assert "NIXL" in said


def test_transfers_that_always_fail_never_become_ready() -> None:
    fault = "env.SGLANG_TEST_DISAGG_FAILURE_PROB='1'"
    said = _fails(f"prefill.{fault}", f"decode.{fault}", "deadlines.start_s=45")
    assert "not ready within 45 s" in said
    assert "canary prefill-0#1/0 -> decode-0#1/0" in said


def test_without_shared_memory_the_lane_is_tcp() -> None:
    tcp = "env.UCX_TLS=tcp"
    sets = (LOCAL, *light(), "transfer.allow_tcp=true", f"prefill.{tcp}", f"decode.{tcp}")
    with serving("configs/local-cpu.yaml", *sets) as deployment:
        request_id = deployment.complete("The capital of France is", max_tokens=4)["request_id"]
        way = deployment.timeline(request_id)
        assert way["lane"] == "tcp"
        assert way["kv_bytes"] > 0


def test_each_role_gets_a_gpu_of_its_own() -> None:
    """Two logical GPUs: Ray's accounting and CUDA_VISIBLE_DEVICES are real, only the engines are never started."""
    answer = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "placed_on_two_gpus.py")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert answer.returncode == 0, answer.stderr
    assert sorted(json.loads(answer.stdout.splitlines()[-1]).items()) in (
        [("decode-0", "0"), ("prefill-0", "1")],
        [("decode-0", "1"), ("prefill-0", "0")],
    )


def test_too_few_gpus_is_told_with_what_there_is() -> None:
    said = _fails("ray.gpus=1", "ray.cpus=8", config="configs/two-gpus.yaml", exit_status=2)
    assert "decode-0 needs 1 GPU" in said
    assert "none of 1 has room" in said


def test_dry_run_starts_nothing() -> None:
    command = [sys.executable, "-m", "disagg.cli.main", "serve", "configs/two-gpus.yaml", "--dry-run"]
    out = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True, env=os.environ)
    assert "prefill-0" in out.stdout


@pytest.mark.parametrize("config", ["configs/local-cpu-2p2d.yaml"])
def test_two_of_each_serve_on_every_engine(config: str) -> None:
    with serving(config, LOCAL, *light()) as deployment:
        names = set()
        for number in range(8):
            from concurrent.futures import ThreadPoolExecutor

            with ThreadPoolExecutor(4) as pool:
                ids = [
                    answer["request_id"]
                    for answer in pool.map(
                        lambda n: deployment.complete([1000 + n, 5, 6, 7], max_tokens=4), range(number, number + 4)
                    )
                ]
            for request_id in ids:
                way = deployment.timeline(request_id)
                assert way["kv_bytes"] > 0
                names |= {way["prefill"], way["decode"]}
            if len(names) == 4:
                break
        assert len(names) == 4, names
