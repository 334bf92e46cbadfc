"""Real engines over several nodes of one machine: they need root, for the namespaces that stand for nodes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# deployment.py, streams.py and moe.py are the engines', etcd_here.py the registry's
sys.path[:0] = [str(HERE), str(HERE.parent / "engines"), str(HERE.parent / "registry")]

from cluster import Cluster, cluster  # noqa: E402
from moe import FOUR_PAIRS, aggregated_answers  # noqa: E402

from disagg.models.tiny import make_tiny  # noqa: E402
from disagg.sglang.plugins.faults import SLOW_VARIABLE  # noqa: E402

LIMIT_S = 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.engine)
            item.add_marker(pytest.mark.nodes)
            item.add_marker(pytest.mark.timeout(LIMIT_S))


@pytest.fixture(scope="session")
def expected() -> list[list[int]]:
    model = str(make_tiny("dsv3"))
    return aggregated_answers([model], FOUR_PAIRS)[model]


@pytest.fixture(scope="session")
def slow_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slow") / "seconds"


@pytest.fixture(scope="session")
def two(expected: list[list[int]], slow_file: Path) -> Iterator[Cluster]:
    with cluster(2, cpus=2, more={SLOW_VARIABLE: str(slow_file)}) as made:
        yield made
