"""Where each SGLang release keeps a scheduler's ranks: a wrong place ends every engine of that release at its start."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from disagg.sglang.plugins.transfer import _ranks_of

RANKS = SimpleNamespace(pp_rank=0, dp_rank=3)


@pytest.mark.parametrize("scheduler", [RANKS, SimpleNamespace(ps=RANKS)], ids=["on it", "in ps"])
def test_until_0_5_20_the_scheduler_has_them(scheduler: Any) -> None:
    assert _ranks_of(scheduler) is RANKS


def test_from_0_5_21_on_they_are_in_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    context = ModuleType("sglang.srt.runtime_context")
    context.get_parallel = lambda: RANKS  # type: ignore[attr-defined]
    for name in ("sglang", "sglang.srt"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, context.__name__, context)
    assert _ranks_of(SimpleNamespace()) is RANKS
