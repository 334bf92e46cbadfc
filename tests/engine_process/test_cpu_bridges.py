"""What stands in for a GPU's part in SGLang, over classes of our own."""

from __future__ import annotations

from typing import Any

from disagg.sglang.plugins import cpu_bridges


class Poller:
    def __init__(self) -> None:
        self.waited_ms: list[int] = []

    def poll(self, wait_ms: int) -> None:
        self.waited_ms.append(wait_ms)


def scheduler(*, is_fully_idle: bool, sleeps_on_idle: bool) -> tuple[Any, Poller]:
    poller = Poller()

    class Sleeper:
        def __init__(self) -> None:
            self.poller = poller

    class Scheduler:
        idle_sleeper = Sleeper() if sleeps_on_idle else None

        def on_idle(self) -> None:
            if is_fully_idle and self.idle_sleeper is not None:
                self.idle_sleeper.poller.poll(1000)

        def is_fully_idle(self) -> bool:
            return is_fully_idle

    cpu_bridges._patient_waits(Scheduler)
    return Scheduler(), poller


def test_a_scheduler_that_only_waits_for_the_other_engine_sleeps_between_two_looks() -> None:
    waiting, poller = scheduler(is_fully_idle=False, sleeps_on_idle=True)
    for _ in range(3):
        waiting.on_idle()
    assert poller.waited_ms == [cpu_bridges.WAITING_POLL_MS] * 3


def test_an_idle_scheduler_sleeps_once_and_one_that_is_not_to_sleep_does_not() -> None:
    idle, poller = scheduler(is_fully_idle=True, sleeps_on_idle=True)
    idle.on_idle()
    assert poller.waited_ms == [1000]
    restless, poller = scheduler(is_fully_idle=False, sleeps_on_idle=False)
    restless.on_idle()
    assert poller.waited_ms == []
