"""A dead peer's mappings are closed by UCX itself, and no other's: with the bundled UCX, over a fake libcuda."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from transfer import ipc_cache
from transfer.ipc_cache import Identity, identity, identity_of, is_known, settle

HERE = Path(__file__).parent


def test_identity_goes_through_a_name() -> None:
    assert identity().pid == os.getpid()
    assert identity_of(str(identity())) == identity()
    assert identity_of("12.34") == Identity(12, 34)
    assert [identity_of(text) for text in ("", "12", "a.b", "2f6e1c1a-3d5b")] == [None] * 4


@pytest.mark.parametrize(
    ("known", "said", "settled"),
    [
        (True, {}, {}),
        (False, {}, {"UCX_CUDA_IPC_CACHE": "n"}),
        (False, {"UCX_CUDA_IPC_CACHE": "y"}, {"UCX_CUDA_IPC_CACHE": "y"}),
    ],
)
def test_the_cache_is_on_where_ucx_can_be_made_to_forget(
    known: bool, said: dict[str, str], settled: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ipc_cache, "is_known", lambda: known)
    settle(said)
    assert said == settled


def _bundled_ucx() -> str | None:
    for package in ("nixl_cu12", "nixl_cu13"):
        if spec := importlib.util.find_spec(package):
            site = Path(str(spec.origin)).parent.parent
            return str(next((site / f"{package}.libs" / "ucx").glob("libuct_cuda.so*")))
    return None


@pytest.mark.skipif(not (shutil.which("cc") and _bundled_ucx() and is_known()), reason="needs cc and a known NIXL")
def test_ucx_forgets_a_dead_peer_and_keeps_the_living(tmp_path: Path) -> None:
    source = str(HERE / "fake_libcuda.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "libcuda.so.1", source], check=True)
    subprocess.run(["cc", "-shared", "-o", tmp_path / "libnvidia-ml.so.1", "-x", "c", "/dev/null"], check=True)
    ran = subprocess.run(
        [sys.executable, HERE / "map_and_forget.py", str(_bundled_ucx())],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1]) == {  # [opened, closed]
        "mapped": [4, 0],
        "used again": [4, 0],
        "forgotten": [4, 3],
        "the living is still mapped": [4, 3],
        "a new process with that pid": [5, 3],
    }
