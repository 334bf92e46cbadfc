"""Real engines: a deployment a configuration, shared by the tests that leave it as they found it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests share deployment.py; they are not a package
sys.path.insert(1, str(Path(__file__).parent.parent / "stopping"))  # and programs.py

from deployment import Deployment, serving

LIMIT_S = 600  # a test and the deployments it starts, on two busy cores
# A deployment of a test is its own: no cluster that happens to run here.
PRIVATE = ("ray.address=local",)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.engine)
            item.add_marker(pytest.mark.timeout(LIMIT_S))


@pytest.fixture(scope="session", autouse=True)
def _no_foreign_cluster() -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in ("RAY_ADDRESS", "DISAGG_URL") if name in os.environ}
    yield
    os.environ.update(kept)


@pytest.fixture(scope="module")
def pair() -> Iterator[Deployment]:
    """One prefill and one decode engine."""
    with serving("configs/local-cpu.yaml", *PRIVATE) as deployment:
        yield deployment
