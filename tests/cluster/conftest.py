from __future__ import annotations

import sys
from pathlib import Path

import pytest

from disagg.cluster import proving, supervisor, watch

sys.path.insert(0, str(Path(__file__).parent))  # tests share scene.py; they are not a package


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who look or pause do so after a tenth of the time."""
    waits = {
        watch: {"LOOK_S": 0.05, "ROUTE_S": 0.1},
        proving: {"RETRY_S": 0.2},
        supervisor: {"BACKOFF_S": (0.0, 0.05, 0.1), "POLL_S": 0.01, "QUIET_S": 0.05, "EVICT_S": 0.5},
    }
    for module, changes in waits.items():
        for name, value in changes.items():
            monkeypatch.setattr(module, name, value)
