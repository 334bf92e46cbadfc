"""The phases of a start have no gaps, and SGLang's own are taken out of the engine's."""

from __future__ import annotations

import pytest

from disagg.start_phases import Phases, told


def test_they_are_in_order_and_nothing_is_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = iter([12.0, 20.0, 20.5])
    monkeypatch.setattr("time.monotonic", lambda: next(now_s))
    phases = Phases(10.0)
    for phase in ("process", "engine", "plane"):
        phases.end(phase)
    phases.split(
        "engine",
        {
            "scheduler_e2e": 5.0,
            "load_weight": 1.0,
            "kv_cache_allocation": 0.5,
            "cuda_graph": {"decode": 2.0, "prefill": 0.5},
        },
    )
    expected = {"process": 2.0, "plane": 0.5, "children": 3.0, "weights": 1.0, "kv": 0.5, "graphs": 2.5, "engine": 1.0}
    assert phases.seconds == expected
    assert told(phases.seconds).startswith("10.5 s (process 2.0, ")


def test_an_older_sglang_tells_nothing() -> None:
    phases = Phases()
    phases.end("engine")
    before = dict(phases.seconds)
    for silent in (None, {}, {"scheduler_e2e": 0.0}):
        phases.split("engine", silent)
    assert phases.seconds == before
    assert told({"plane": 0.0}) == "0.0 s ()"
