"""Signals at any moment of a command. Real Ray with simulated engines where a file says so."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests share programs.py; they are not a package


@pytest.fixture(autouse=True)
def _no_foreign_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "DISAGG_URL", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
