"""When a decode engine's next step waits, and how long."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from decode import pace


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept_s: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_s += seconds


def test_a_step_waits_for_what_is_left_of_the_pace() -> None:
    clock = Clock()
    paced = pace.Pace(0.025, lambda: clock.now_s, clock.sleep)
    for took_s in (0.010, 0.020, 0.040, 0.0):
        paced.begin(waits=True)
        clock.now_s += took_s
    assert clock.slept_s == pytest.approx([0.015, 0.005])


def test_where_none_waits_the_next_step_begins_at_once_and_the_one_after_it_counts_from_there() -> None:
    clock = Clock()
    paced = pace.Pace(0.025, lambda: clock.now_s, clock.sleep)
    paced.begin(waits=False)
    paced.begin(waits=False)
    assert clock.slept_s == []
    clock.now_s += 0.005
    paced.begin(waits=True)
    assert clock.slept_s == pytest.approx([0.020])


@pytest.mark.parametrize(
    ("waiting", "retracted", "running", "paced"),
    [
        ([], [], False, False),
        ([], [], True, False),
        (["room"], [], False, False),
        (["room"], ["stream"], True, False),
        (["room"], [], True, True),
    ],
)
def test_only_running_streams_beside_a_prompt_are_paced(
    monkeypatch: pytest.MonkeyPatch, waiting: list[str], retracted: list[str], running: bool, paced: bool
) -> None:
    turns: list[str] = []

    class Scheduler:
        disagg_decode_transfer_queue = SimpleNamespace(queue=waiting)
        disagg_decode_prealloc_queue = SimpleNamespace(retracted_queue=retracted)
        running_batch = SimpleNamespace(is_empty=lambda: not running)

        def process_decode_queue(self) -> None:
            turns.append("turn")

    asked: list[bool] = []
    _stand_in_for_sglang(monkeypatch, Scheduler)
    monkeypatch.setenv(pace.VARIABLE, "25")
    monkeypatch.setattr(pace.Pace, "begin", lambda self, *, waits: asked.append(waits))
    pace.activate()
    Scheduler().process_decode_queue()
    assert (turns, asked) == (["turn"], [paced])


def test_an_engine_without_a_pace_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scheduler:
        def process_decode_queue(self) -> None: ...

    process = Scheduler.process_decode_queue
    _stand_in_for_sglang(monkeypatch, Scheduler)
    monkeypatch.delenv(pace.VARIABLE, raising=False)
    pace.activate()
    assert Scheduler.process_decode_queue is process


def _stand_in_for_sglang(monkeypatch: pytest.MonkeyPatch, scheduler: Any) -> None:
    for name in ("sglang", "sglang.srt", "sglang.srt.managers", "sglang.srt.managers.scheduler"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["sglang.srt.managers.scheduler"].Scheduler = scheduler  # type: ignore[attr-defined]
