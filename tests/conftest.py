"""The house rules of the whole suite: a run of everything is not green unless the real engines were really run, of
tests that are `in_turn` some run each day, and a run that is told to end (SIGTERM) ends what it has started, as at
Ctrl-C.
"""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from pathlib import Path
from types import FrameType

import pytest

from tests.todays import other_days_files, todays

HERE = Path(__file__).parent
REAL_ENGINE_TESTS_MIN = 40


class _Counter:
    def __init__(self) -> None:
        self.passed = 0
        self.skipped: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if "engine" in report.keywords:
            self.passed += report.when == "call" and report.passed
            if report.skipped:
                self.skipped.append(report.nodeid)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Counter(), "real-engine-counter")
    _end_in_order_at_sigterm()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    in_turn: defaultdict[tuple[Path, str], list[pytest.Item]] = defaultdict(list)
    counts: dict[tuple[Path, str], int] = {}
    for item in items:
        if mark := item.get_closest_marker("in_turn"):
            group = item.path, mark.kwargs.get("of") or getattr(item, "originalname", item.name)
            in_turn[group].append(item)
            counts[group] = mark.args[0]
    not_today = other_days_files() if config.args == ["tests"] else set()
    left = [item for item in items if item.path.relative_to(HERE).as_posix() in not_today]
    left += [item for group, those in in_turn.items() for item in set(those) - set(todays(those, counts[group]))]
    if left:
        config.hook.pytest_deselected(items=left)
        gone = set(left)
        items[:] = [item for item in items if item not in gone]


def _end_in_order_at_sigterm() -> None:
    """The default action ends the process before any fixture is closed. At a second signal it still does. SIGINT, which
    xdist interrupts its workers with, is ignored in what a shell started with `&`: not here."""
    ours = os.getpid()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() != ours:  # forked by a test, and ended by it
            os.kill(os.getpid(), number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    is_whole = config.args == ["tests"] and config.option.markexpr == "not nodes" and not config.option.keyword
    counter = config.pluginmanager.get_plugin("real-engine-counter")
    assert isinstance(counter, _Counter)
    if is_whole and session.exitstatus == 0 and (counter.skipped or counter.passed < REAL_ENGINE_TESTS_MIN):
        print(
            f"\n{counter.passed} real-engine tests passed, {len(counter.skipped)} were skipped: "
            f"at least {REAL_ENGINE_TESTS_MIN} must pass and none may be skipped"
        )
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
