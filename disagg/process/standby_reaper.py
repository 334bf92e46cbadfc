"""The reaper of a standby: it keeps a standby host, then is the reaper of the engine that takes it.

Way:   actor =pipe= [standby reaper] -> standby host -> its spare children
In:    on the pipe a StandbySpec, and when the engine's turn comes a HostSpec, a line each
Out:   as a reaper; before that only the standby host's own StandbyReady, or an Exit
Owns:  the standby's process tree, and its priority: the lowest until it is used, if the kernel lets us raise it again
Fails: the pipe closes, or the standby host dies: then the tree is killed

Usage: python -m disagg.process.standby_reaper PIPE_FD
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from contextlib import suppress
from typing import NoReturn

import msgspec

from disagg.host_spec import StandbySpec, decode_spec, decode_standby
from disagg.process import reaper as reaper
from disagg.process.news import Exit, with_tail
from disagg.process_tree import tree

PRINTED_MAX_BYTES = 64 << 10  # what is kept of the standby's output until there is an engine's log for it
TAIL_LINES = 20
LOOK_S = 300.0  # a standby opens segments while it imports, and each one that appears is news
IDLE_NICE = 19


def keep(standby: StandbySpec, pipe: socket.socket) -> None:
    """Returns once nothing of the standby, or of the engine that it became, is left."""
    reaper.lead()
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    if _can_be_raised_again(usual):
        os.setpriority(os.PRIO_PROCESS, 0, IDLE_NICE)
    order, theirs = socket.socketpair()
    with theirs:
        host = reaper.start(lambda: _become_spare(standby, pipe, theirs))
    printed = bytearray()

    def keep_last(data: bytes) -> None:
        printed.extend(data)
        del printed[:-PRINTED_MAX_BYTES]

    line = reaper.tend(host, pipe, keep_last, LOOK_S)
    if isinstance(line, Exit):
        keep_last(reaper.end(host))
        reaper.remove_segments(host)
        tail = printed.decode(errors="replace").splitlines()[-TAIL_LINES:]
        reaper.say(pipe, with_tail(line, tail))
        return
    _raise_tree(usual)
    # The news of its last segment may have come with the order, and the engine may die before that news is read.
    host.note_segments()
    spec = decode_spec(line)
    with reaper.telling_why(pipe):
        reaper.make_scratch(spec)
        reaper.say_started(pipe, host)
        with order, suppress(OSError):  # it has just died: `follow` sees it
            order.sendall(line)
        reaper.follow(spec, pipe, host, bytes(printed))


def _become_spare(standby: StandbySpec, pipe: socket.socket, order: socket.socket) -> NoReturn:
    for each in (pipe, order):
        each.set_inheritable(True)
    words = ["-P", "-m", "disagg.process.standby_host", str(pipe.fileno()), str(order.fileno())]
    spares = msgspec.json.encode(standby.spares).decode()
    os.execve(sys.executable, [sys.executable, *words, spares], os.environ | standby.environment)


def _can_be_raised_again(usual: int) -> bool:
    """Whether the kernel lets us undo a lower priority. Tried on a short thread: a nice value belongs to one thread."""
    verdict: list[bool] = []

    def attempt() -> None:
        os.setpriority(os.PRIO_PROCESS, 0, IDLE_NICE)
        try:
            os.setpriority(os.PRIO_PROCESS, 0, usual)
        except PermissionError:
            return
        verdict.append(True)

    trying = threading.Thread(target=attempt)
    trying.start()
    trying.join()
    return bool(verdict)


def _raise_tree(usual: int) -> None:
    """Gives every thread of the tree the priority `usual`. Repeats until nothing changes: while it walks, a thread that
    it has not reached yet may start another one, which inherits the low priority."""
    found = True
    while found:
        found = False
        for pid in (os.getpid(), *tree(os.getpid())):
            for thread in _threads(pid):
                with suppress(OSError):  # it ended while we looked
                    if os.getpriority(os.PRIO_PROCESS, thread) != usual:
                        os.setpriority(os.PRIO_PROCESS, thread, usual)
                        found = True


def _threads(pid: int) -> list[int]:
    try:
        return [int(thread) for thread in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


if __name__ == "__main__":
    actor_pipe = socket.socket(fileno=int(sys.argv[1]))
    with actor_pipe.makefile("rb", buffering=0) as reader:  # the next line may be there already
        first_line = reader.readline()
    keep(decode_standby(first_line), actor_pipe)
