"""Real engines: a deployment a configuration, shared by the tests that leave it as they found it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests share deployment.py; they are not a package
sys.path.insert(1, str(Path(__file__).parent.parent / "stopping"))  # and programs.py
sys.path.insert(2, str(Path(__file__).parent.parent / "frontend"))  # and chat_styles.py
sys.path.insert(3, str(Path(__file__).parent.parent / "security"))  # and listeners.py

from deployment import Deployment, serving
from job_cluster import ray_cluster

LIMIT_S = 600  # a test and the deployments it starts, on two busy cores
# A deployment of a test is its own: no cluster that happens to run here.
PRIVATE = ("ray.address=local",)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.engine)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(LIMIT_S))


@pytest.fixture(scope="session", autouse=True)
def _no_foreign_cluster() -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in ("RAY_ADDRESS", "DISAGG_URL") if name in os.environ}
    yield
    os.environ.update(kept)


# What a company, a batch system and an open umask surround it with. Nothing listens at port 9.
HOSTILE = {
    **{name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY")},
    **{"no_proxy": "", "LC_ALL": "C", "GLOO_SOCKET_IFNAME": "no-such0", "NCCL_SOCKET_IFNAME": "no-such0"},
    **{"MASTER_ADDR": "192.0.2.77", "MASTER_PORT": "1", "WORLD_SIZE": "8", "RANK": "5", "LOCAL_RANK": "5"},
    **{"TORCHELASTIC_USE_AGENT_STORE": "True", "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "OMPI_COMM_WORLD_RANK": "5"},
    **{"RAY_ADDRESS": "ray://192.0.2.77:10001", "RAY_REDIS_ADDRESS": "192.0.2.77:6379", "RAY_TMPDIR": "/nowhere"},
    **{"RAY_AUTH_MODE": "disabled", "RAY_NAMESPACE": "other", "RAY_JOB_CONFIG_JSON_ENV_VAR": "{"},
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One prefill and one decode engine, started in a hostile place: it is to make no difference."""
    folder = tmp_path_factory.mktemp("hostile")
    for name in ("decode", "prefill", "transfer", "disagg", "ray", "json", "sglang", "torch"):
        (folder / f"{name}.py").write_text(f"raise SystemExit('{name}.py of the user was imported')\n")
    with serving("local-cpu", *PRIVATE, environment=HOSTILE, folder=folder) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Ray that runs already, for jobs; its environment for clients."""
    with ray_cluster(tmp_path_factory.mktemp("home")) as environment:
        yield environment
