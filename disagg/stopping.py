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
    """Within this block signals do what the module's docstring says; after it, what they did before."""
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
    """Within this block the first signal only calls `ask` with its number, in the main thread."""
    global _ask
    outer, _ask = _ask, ask
    try:
        yield
    finally:
        _ask = outer


@contextlib.contextmanager
def unwinding() -> Iterator[None]:
    """Within this block, in the main thread, the first signal raises Stopped, so that `finally` blocks clean up."""

    def stop(number: int) -> None:
        leave_within(LIMIT_S, 128 + number)
        raise Stopped(number)

    with in_order(stop):
        yield


@contextlib.contextmanager
def farewell(call: Callable[[], None]) -> Iterator[None]:
    """Within this block, a process that has to end at once runs `call` last. `call` must not block."""
    _farewells.append(call)
    try:
        yield
    finally:
        _farewells.remove(call)


def aside(work: Callable[[], T]) -> T:
    """Runs `work` in another thread, while this one only waits for signals.

    So a call in `work` that blocks does not delay a signal. Ray's connect is such a call: in C++, it does not run
    Python's handlers, and it replaces SIGTERM's by one that aborts. Ours is put back until `work` calls `settled`.
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
    """Called when Ray is connected: nothing replaces our handlers any more."""
    _settled.set()


def need_standard_files() -> None:
    """Opens /dev/null for each standard file that was closed (`<&-`): the next opened file would get its number."""
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
    """Ends the process at once: it waits for no thread and prints nothing."""
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
