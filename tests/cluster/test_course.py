"""What a signal means to a command that starts a deployment: before it serves, and later."""

from __future__ import annotations

import asyncio
import signal

import pytest

from disagg import stopping
from disagg.cluster.course import Course
from disagg.errors import StartError


class Left(BaseException):
    pass


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, int]]:
    """Within how long the process would end, and with which status: 0 s where it ends at once."""
    told: list[tuple[float, int]] = []

    def leave(status: int) -> None:
        told.append((0.0, status))
        raise Left

    monkeypatch.setattr(stopping, "leave", leave)
    monkeypatch.setattr(stopping, "leave_within", lambda limit_s, status: told.append((limit_s, status)))
    return told


async def run(course: Course, *, serves: bool, fails: bool = False) -> None:
    """A signal comes while it waits."""
    with stopping.heed(), course.heeding():
        if serves:
            course.has_come_to_serve()
        asyncio.get_running_loop().call_later(0.01, signal.raise_signal, signal.SIGINT)
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            if fails:
                raise StartError("ray", "it is gone", "look") from None
            raise


@pytest.mark.parametrize("fails", [False, True])
async def test_before_it_serves_it_ends_as_signalled_whatever_fails_then(
    left: list[tuple[float, int]], *, fails: bool
) -> None:
    with pytest.raises(Left):
        await run(Course(), serves=False, fails=fails)
    assert [status for _, status in left] == [130, 130]
    assert left[0][0] < 3


async def test_once_it_serves_it_ends_by_itself(left: list[tuple[float, int]]) -> None:
    course = Course()
    await run(course, serves=True)
    assert not left
    course.has_no_request()
    assert [status for _, status in left] == [0]


async def test_a_failing_stop_is_told_once_it_has_served(left: list[tuple[float, int]]) -> None:
    with pytest.raises(StartError):
        await run(Course(), serves=True, fails=True)
    assert not left


async def test_without_a_signal_a_failure_and_a_cancellation_go_on(left: list[tuple[float, int]]) -> None:
    with pytest.raises(StartError), Course().heeding():
        raise StartError("ray", "it is gone", "look")
    with pytest.raises(asyncio.CancelledError), Course().heeding():
        raise asyncio.CancelledError
    assert not left
