"""What SIGTERM, Ctrl-C and a closed terminal do to a command, from its first line to its last.

Way:   cli -> [heed] -> a command, which says with `unwinding` or `in_order` what it holds
In:    SIGTERM, SIGINT, SIGHUP (unless it was ignored when we started: nohup)
Out:   the first one ends a command: at once where it holds nothing, else as it says, within LIMIT_S.
       The second one ends it at once, whatever it does. The status is 128 + the signal's number
Owns:  the process's handlers of these signals. Nothing of disagg is imported here: this is there before all else
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn, TypeVar

T = TypeVar("T")

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LIMIT_S = 2.5  # `ray job stop` kills 3 s after its signal
SAME_S = 0.1  # timeout(1) sends its signal twice, and a parent may hand on a Ctrl-C that came to us, too: that is one
RENEW_S = 0.02
LOOK_S = 0.5  # a signal that comes just before a thread begins to wait is heeded when the wait ends


class Stopped(BaseException):
    """A signal came: give back what is held, and end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


_heeded: tuple[signal.Signals, ...] = ()
_first_s: float | None = None  # when the first signal came
_ask: Callable[[int], None] | None = None  # what the first one does; None: there is nothing to give back
_farewells: list[Callable[[], None]] = []


@contextlib.contextmanager
def heed() -> Iterator[None]:
    """From here on signals do what this page says; at its end, what they did before."""
    global _heeded, _first_s
    if threading.current_thread() is not threading.main_thread():
        yield  # Python's handlers are the main thread's
        return
    before = {number: signal.getsignal(number) for number in NUMBERS}
    _heeded = tuple(n for n in NUMBERS if n != signal.SIGHUP or before[n] is not signal.SIG_IGN)
    _first_s = None
    _renew()
    try:
        yield
    finally:
        for number in _heeded:
            signal.signal(number, before[number] or signal.SIG_DFL)
        _heeded = ()


@contextlib.contextmanager
def in_order(ask: Callable[[int], None]) -> Iterator[None]:
    """Within this the first signal calls `ask` with its number, in the main thread, and nothing else."""
    global _ask
    outer, _ask = _ask, ask
    try:
        yield
    finally:
        _ask = outer


@contextlib.contextmanager
def unwinding() -> Iterator[None]:
    """Within this, in the main thread, the first signal raises Stopped: files and child processes have an owner."""

    def stop(number: int) -> None:
        leave_within(LIMIT_S, 128 + number)
        raise Stopped(number)

    with in_order(stop):
        yield


@contextlib.contextmanager
def farewell(call: Callable[[], None]) -> Iterator[None]:
    """Within this `call` is the last thing that is done where the process ends at once. It must not block."""
    _farewells.append(call)
    try:
        yield
    finally:
        _farewells.remove(call)


def aside(work: Callable[[], T]) -> T:
    """Does `work` in another thread, while this one does nothing but heed signals.

    So no call that blocks in it makes us deaf: Ray's connect in C++ knows nothing of Python's handlers, and puts one
    of its own, which aborts, in the place of SIGTERM's. Ours is put back until `work` says `settled`.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    result: list[T] = []
    errors: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again where it belongs
            errors.append(error)
        finally:
            done.set()

    _settled.clear()
    threading.Thread(target=run, name="command", daemon=True).start()
    while not _settled.is_set() and not done.wait(RENEW_S):
        _renew()
    _renew()
    while not done.wait(LOOK_S):
        pass
    if errors:
        raise errors[0]
    return result[0]


_settled = threading.Event()


def settled() -> None:
    """Ray is connected: nobody takes our handlers any more."""
    _settled.set()


def need_standard_files() -> None:
    """One that was closed (`<&-`) is /dev/null: else the next file or pipe that is opened would take its number."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number, which is this one


def leave_within(limit_s: float, status: int) -> None:
    """Ends the process, unless it ends before by itself."""

    def wait() -> None:
        time.sleep(limit_s)
        leave(status)

    # Not a Thread: this may run in a signal's handler, which may have come while one of those was being started.
    _thread.start_new_thread(wait, ())


def leave(status: int) -> NoReturn:
    """Ends the process here and now: no thread is waited for, and nothing is told."""
    for call in reversed(_farewells):
        with contextlib.suppress(Exception):
            call()
    os._exit(status)


def _renew() -> None:
    for number in _heeded:
        signal.signal(number, _on_signal)


def _on_signal(number: int, _frame: FrameType | None) -> None:
    global _first_s
    now_s = time.monotonic()
    if _first_s is None:
        _first_s = now_s
        if _ask is None:
            leave(128 + number)
        _ask(number)
    elif now_s - _first_s > SAME_S:
        leave(128 + number)
