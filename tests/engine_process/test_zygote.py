"""What a zygote's forks have from it, and what they read anew."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from disagg.process.zygote import REGISTRY, forget_models_of_others


@pytest.mark.parametrize(
    ("environment", "is_read_anew"),
    [({}, False), ({"OMP_NUM_THREADS": "1"}, False), ({"SGLANG_EXTERNAL_MODEL_PACKAGE": "ours.models"}, True)],
)
def test_models_of_ones_own_package_are_found(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], *, is_read_anew: bool
) -> None:
    monkeypatch.setitem(sys.modules, REGISTRY, ModuleType(REGISTRY))
    forget_models_of_others(environment)
    assert (REGISTRY not in sys.modules) == is_read_anew
