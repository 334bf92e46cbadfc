"""Real engines over several nodes of one machine: they need root, for the namespaces that stand for nodes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "engines")]  # deployment.py, streams.py and moe.py are theirs

LIMIT_S = 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.engine)
            item.add_marker(pytest.mark.nodes)
            item.add_marker(pytest.mark.timeout(LIMIT_S))
