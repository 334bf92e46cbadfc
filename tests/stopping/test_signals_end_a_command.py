"""The rules of disagg/stopping.py, each with a program of a few lines."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import Program, heeds

HEAD = """
import ctypes, os, signal, sys, threading, time
from disagg import stopping
def say(word):
    os.write(1, (word + "\\n").encode())
def wait():
    while True:  # a signal that comes just before a sleep begins is heeded when it ends
        time.sleep(0.1)
def main():
    with stopping.heed():
        try:
            run()
        except stopping.Stopped as stopped:
            say("given back")
            stopping.leave(128 + stopped.number)
"""


@pytest.fixture
def started() -> Iterator[list[Program]]:
    programs: list[Program] = []
    yield programs
    for program in programs:
        program.close()


def _run(started: list[Program], body: str, **more: object) -> Program:
    program = Program.start([sys.executable, "-c", f"{HEAD}\ndef run():\n{body}\nmain()"], **more)  # type: ignore[arg-type]
    started.append(program)
    return program


def _until_said(program: Program, word: str) -> None:
    program.until(lambda: word in program.said(), f"it does not say {word!r}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_one_that_holds_nothing_ends_at_once(started: list[Program], number: int) -> None:
    program = _run(started, "    say('up'); wait()")
    _until_said(program, "up")
    program.send(number)
    assert program.status() == 128 + number
    assert program.said() == "up\n", "no traceback, and nothing else"


def test_a_call_that_blocks_beside_the_interpreter_does_not_make_it_deaf(started: list[Program]) -> None:
    """As Ray's connect in C++ does: the thread never comes back to Python."""
    program = _run(started, "    stopping.aside(lambda: (say('up'), ctypes.CDLL(None).poll(None, 0, 600_000)))")
    _until_said(program, "up")
    program.send(signal.SIGTERM)
    assert program.status() == 143


def test_a_handler_that_a_library_puts_in_our_place_is_taken_away_again(started: list[Program]) -> None:
    work = """
    libc = ctypes.CDLL(None)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
    def work():
        time.sleep(0.1)
        libc.signal(15, None)  # SIG_DFL, behind Python's back
        say("replaced")
        time.sleep(600)
    stopping.aside(work)"""
    program = _run(started, work)
    _until_said(program, "replaced")
    program.until(lambda: heeds(program.process.pid, signal.SIGTERM), "the handler was not put back")
    program.send(signal.SIGTERM)
    assert program.process.wait(15) == 143, "an exit status: it was not killed by the signal"


def test_one_that_holds_something_gives_it_back_first(started: list[Program]) -> None:
    program = _run(started, "    with stopping.unwinding():\n        say('up'); wait()")
    _until_said(program, "up")
    program.send(signal.SIGINT)
    assert program.status() == 130
    assert program.said() == "up\ngiven back\n"


HANGS = """
    with stopping.farewell(lambda: say("farewell")), stopping.unwinding():
        try:
            say("up"); wait()
        finally:
            say("hangs"); ctypes.CDLL(None).poll(None, 0, 600_000)"""


def test_one_that_cannot_give_it_back_ends_nevertheless(started: list[Program]) -> None:
    program = _run(started, HANGS)
    _until_said(program, "up")
    program.send(signal.SIGTERM)
    assert program.status() == 143
    assert program.said() == "up\nhangs\nfarewell\n"


ENDLESS = """
    with stopping.farewell(lambda: say("farewell")), stopping.in_order(lambda number: say(f"asked {number}")):
        say("up")
        while True:
            time.sleep(1)"""


def test_the_second_signal_ends_what_ends_in_order(started: list[Program]) -> None:
    program = _run(started, ENDLESS)
    _until_said(program, "up")
    program.send(signal.SIGTERM)
    _until_said(program, "asked 15")
    time.sleep(0.5)  # it is not the same one, which came twice
    assert program.process.poll() is None
    program.send(signal.SIGINT)
    assert program.status() == 130
    assert program.said() == "up\nasked 15\nfarewell\n"


def test_a_signal_that_comes_twice_at_once_is_one(started: list[Program]) -> None:
    """timeout(1) signals its child and then its group; so does a parent that hands on the terminal's Ctrl-C."""
    program = _run(started, ENDLESS)
    _until_said(program, "up")
    # Both are pending before it can run again: how busy the machine is has no part in it.
    program.process.send_signal(signal.SIGSTOP)
    program.send(signal.SIGTERM)
    program.send(signal.SIGINT)
    program.process.send_signal(signal.SIGCONT)
    program.until(lambda: "asked" in program.said(), "it heeds neither")
    time.sleep(1)
    assert program.process.poll() is None
    assert program.said().count("asked") == 1


def test_under_nohup_a_closed_terminal_is_none_of_its_business(started: list[Program], tmp_path: Path) -> None:
    program = _run(started, ENDLESS, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    _until_said(program, "up")
    program.send(signal.SIGHUP)
    time.sleep(0.3)
    program.send(signal.SIGTERM)
    _until_said(program, "asked 15")
    assert program.said() == "up\nasked 15\n"


def test_a_stopped_and_continued_one_goes_on(started: list[Program]) -> None:
    program = _run(started, ENDLESS)
    _until_said(program, "up")
    program.process.send_signal(signal.SIGTSTP)
    time.sleep(0.3)
    program.process.send_signal(signal.SIGCONT)
    program.send(signal.SIGTERM)
    _until_said(program, "asked 15")


def test_closed_standard_files_are_no_numbers_for_others(started: list[Program], tmp_path: Path) -> None:
    told = tmp_path / "told"
    body = f"    stopping.need_standard_files(); fd = os.open('/', 0); open({str(told)!r}, 'w').write(str(fd))"
    script = 'exec "$0" -c "$1" <&- >&- 2>&-'
    program = Program.start(["sh", "-c", script, sys.executable, f"{HEAD}\ndef run():\n{body}\nmain()"])
    started.append(program)
    assert program.status() == 0
    assert int(told.read_text()) > 2


def test_what_a_handler_did_before_it_does_again() -> None:
    from disagg import stopping

    before = [signal.getsignal(number) for number in stopping.NUMBERS]
    with stopping.heed():
        assert signal.getsignal(signal.SIGTERM) is not before[0]
    assert [signal.getsignal(number) for number in stopping.NUMBERS] == before
