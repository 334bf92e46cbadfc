"""`pip install` of the wheel alone: what needs no SGLang works with the dependencies that the wheel declares."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from disagg.cluster.ports import free_port
from disagg.models.catalogue import cache_folder

Run = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.slow
KEPT_OUT = ("torch", "sglang", "transformers", "nixl", "pytest")
IMPORT_ALL = """
import importlib, pkgutil, traceback
count = 0
for package in map(importlib.import_module, ("disagg", "prefill", "decode", "transfer")):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if ".standins." not in module.name:  # they stand for packages that are not there
            try:
                importlib.import_module(module.name)
            except Exception:
                print(module.name)
                traceback.print_exc()
            count += 1
print(count, "modules")
"""


@pytest.fixture
def run(declared: Path, tmp_path: Path) -> Run:
    environment = {"HOME": str(tmp_path), "PATH": f"{declared}/bin:/usr/bin:/bin", "DISAGG_CACHE": str(cache_folder())}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        program = str(declared / "bin" / words[0])
        return subprocess.run(
            [program, *words[1:]], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
        )

    return run


def test_nothing_undeclared_is_there(run: Run) -> None:
    for name in KEPT_OUT:
        assert "ModuleNotFoundError" in run("python", "-c", f"import {name}").stderr, name


def test_every_module_is_imported_without_an_engine(run: Run) -> None:
    done = run("python", "-c", IMPORT_ALL)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", done.stdout + done.stderr
    assert int(done.stdout.split()[0]) > 150


@pytest.mark.parametrize(
    "words",
    [
        "--help",
        "check simulated",
        "check configs/local-cpu.yaml",
        "check configs/deepseek-2x8-h200.yaml --assume-cluster configs/clusters/2x8-h200.yaml",
        "serve two-gpus --dry-run",
        "model list",
        "model path smollm2",
        "deploy docker local-cpu",
        "deploy slurm deepseek-2x8-h200",
        "bench transfer --help",
    ],
)
def test_a_command_that_needs_no_engine_works(words: str, run: Run) -> None:
    done = run("disagg", *words.split())
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("setup gpu", 2, "for CUDA: pip install 'nixl>=1.0' 'sglang<=0.5.23,>=0.5.16'"),
        ("bench transfer --sizes 64K --rounds 1", 1, "No module named 'nixl'"),
        (
            "model make-tiny qwen3 --into tiny",
            1,
            "not installed: torch, transformers, gguf, safetensors; run `disagg setup` first",
        ),
    ],
)
def test_a_command_that_needs_one_says_so(words: str, status: int, said: str, run: Run) -> None:
    done = run("disagg", *words.split())
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_what_ships_is_found_and_read_where_it_lies(declared: Path, run: Run) -> None:
    said = run("python", "-c", "from disagg.config.find import find_config; print(find_config('local-cpu'))").stdout
    assert said.startswith(str(declared)), said
    assert said.strip().endswith("disagg/_configs/local-cpu.yaml")


@pytest.mark.engine
def test_simulated_engines_serve(declared: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [declared / "bin" / "disagg", "serve", "simulated", "--set", f"frontend.port={free_port()}"],
            cwd=tmp_path,
            env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "DISAGG_CACHE": str(cache_folder())},
            stderr=output,
            stdout=output,
        )
    try:
        while b"serving smollm2 on" not in log.read_bytes():
            assert server.poll() is None, log.read_text()
            time.sleep(0.2)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)
    assert server.returncode == 0, log.read_text()
    assert "Traceback" not in log.read_text()
    assert os.listdir(tmp_path)
