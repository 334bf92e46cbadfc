"""The process above an engine host: it outlives the host's death and leaves nothing of the engine behind.

Way:   actor =pipe= [reaper] -> host -> scheduler, detokenizer
In:    the actor's pipe; the output of every process of the engine; the host's death
Out:   on the pipe, news (news.py): Started, the host's own Ready, LaneSeen, LogTrouble, Exit
Owns:  the engine's whole process tree (it is their subreaper: an orphan becomes its child, so none can get away),
       their log, their scratch folder, their shared memory segments
Fails: the pipe closes when the actor dies, however it dies: then the tree is killed, and so it is when the host dies.
       Should the reaper itself be killed, the kernel kills the host, and SGLang's processes follow theirs. What it
       cannot do (the disk is full, a folder is a file) is reported as an exit, with its cause

Usage where nothing can be forked: python -m disagg.process.reaper PIPE_FD   (the spec is the pipe's first line)
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from disagg.folders import own_folder
from disagg.host_spec import HostSpec, decode_spec, encode_spec
from disagg.logfile import RotatingLog
from disagg.process.news import Exit, LaneSeen, LogTrouble, News, Started, encode_news, exit_of, with_tail
from disagg.process_tree import tree
from transfer.lane import LaneReader

ACTOR_GONE = Exit(why="its actor is gone")
SHARED_MEMORY = Path("/dev/shm")
LOOK_S = 2.0  # how often the engine's shared memory segments are noted down, beside each time that one appears
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_IN_CREATE = 0x100
_libc = ctypes.CDLL(None, use_errno=True)

StartHost = Callable[[HostSpec, socket.socket], None]  # runs in the child; does not return


def fork_host(spec: HostSpec, pipe: socket.socket) -> None:
    from disagg.process import host

    host.run(spec, pipe)


def exec_host(spec: HostSpec, pipe: socket.socket) -> NoReturn:
    path = Path(spec.scratch) / "spec.json"
    path.write_bytes(encode_spec(spec))
    pipe.set_inheritable(True)
    environment = os.environ | spec.environment  # before the interpreter starts: imports read it
    os.execve(
        sys.executable, [sys.executable, "-P", "-m", "disagg.process.host", str(path), str(pipe.fileno())], environment
    )


@dataclass(frozen=True, slots=True)
class HostProcess:
    pid: int
    out: int  # what it and its children print
    news: int | None  # of segments, see _watch_for_segments
    segments: set[str] = field(default_factory=set)  # that it, or a process below it, was seen to use

    def note_segments(self) -> None:
        """Notes down the shared memory segments in use."""
        self.segments.update(_segments_of(tree(os.getpid())))


def watch(spec: HostSpec, pipe: socket.socket, start_host: StartHost) -> None:
    """Starts the host and returns once nothing of the engine is left."""
    lead()
    with telling_why(pipe):
        make_scratch(spec)
        host = start(lambda: start_host(spec, pipe))
        say_started(pipe, host)
        follow(spec, pipe, host)


@contextlib.contextmanager
def telling_why(pipe: socket.socket) -> Iterator[None]:
    """If the reaper fails inside, it kills what it has started and reports the cause as an exit."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - its only reader is at the other end of the pipe
        end_tree()
        say(pipe, Exit(why=f"its reaper failed: {error}", tail=tuple(traceback.format_exc().splitlines())))


def lead() -> None:
    """Makes this process the subreaper: every orphan below it becomes its child."""
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # `ray job stop` may send it here; the end comes through the pipe
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def start(run: Callable[[], None]) -> HostProcess:
    """Forks the host. `run` is called in the child and does not return there."""
    out, out_of_host = os.pipe()
    news = _watch_for_segments()
    pid = os.fork()
    if pid == 0:
        _become_host(out_of_host, run)
    os.close(out_of_host)
    return HostProcess(pid, out, news)


def say_started(pipe: socket.socket, host: HostProcess) -> None:
    say(pipe, Started(reaper=os.getpid(), host=host.pid))


def follow(spec: HostSpec, pipe: socket.socket, host: HostProcess, printed: bytes = b"") -> None:
    """Returns once nothing of the engine is left. `printed`: what the host printed while it was a standby."""
    log = _TellingLog(spec, pipe)
    lanes = LaneReader(gpu=spec.arguments.get("device") == "cuda")

    def on_output(data: bytes) -> None:
        for line in log.write(data):
            if lane := lanes.read(line):
                say(pipe, LaneSeen(lane))

    log.write(printed)
    exit_ = tend(host, pipe, on_output)
    assert isinstance(exit_, Exit)  # the actor sends no second line
    log.write(end(host))
    say(pipe, with_tail(exit_, log.tail))
    log.close()
    shutil.rmtree(spec.scratch, ignore_errors=True)
    with contextlib.suppress(OSError):  # the node's last: the deployment's janitor is on another node, perhaps
        Path(spec.scratch).parent.rmdir()
    remove_segments(host)


class _TellingLog(RotatingLog):
    """An engine's log. It reports trouble with the disk on the pipe; UCX's tables stay in it if the pool asked for
    them."""

    def __init__(self, spec: HostSpec, pipe: socket.socket) -> None:
        is_asked = spec.arguments.get("log_level") == "debug"
        super().__init__(Path(spec.log_path), keep_tables=is_asked)
        self._pipe, self._told = pipe, ""
        self._tell()

    def write(self, data: bytes) -> list[str]:
        lines = super().write(data)
        self._tell()
        return lines

    def _tell(self) -> None:
        if self.trouble != self._told:
            self._told = self.trouble
            say(self._pipe, LogTrouble(self.trouble))


def remove_segments(host: HostProcess) -> None:
    existing = _existing_segments()
    for name in host.segments & set(existing.values()):
        if not _is_mapped(name, existing):
            (SHARED_MEMORY / name).unlink(missing_ok=True)


def make_scratch(spec: HostSpec) -> None:
    scratch = Path(spec.scratch)
    while True:
        own_folder(scratch.parent)
        with contextlib.suppress(FileNotFoundError):  # another engine's end has just taken the folder away
            scratch.mkdir(mode=0o700, exist_ok=True)
            return


def _become_host(out: int, run: Callable[[], None]) -> NoReturn:
    status = 1
    try:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(out, 1)
        os.dup2(out, 2)
        run()
        status = 0
    except BaseException:  # noqa: BLE001 - the last line of defence of a forked process: say why and end
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def tend(
    host: HostProcess, pipe: socket.socket, on_output: Callable[[bytes], None], look_s: float = LOOK_S
) -> Exit | bytes:
    """Hands on what the host prints until it or the actor is gone, or the actor sends a line; returns what happened."""
    died, line, look_at = os.pidfd_open(host.pid), b"", 0.0
    with selectors.DefaultSelector() as selector:
        for source in (pipe, host.out, died, host.news):
            if source is not None:
                selector.register(source, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            for key, _ in selector.select(look_s):
                if key.fileobj == host.out:
                    data = _read(host.out)
                    if not data:
                        selector.unregister(host.out)
                    on_output(data)
                elif key.fileobj == host.news:
                    _read(key.fd)
                    look_at = 0.0  # look at once: an engine that dies early would be gone at the next regular look
                elif key.fileobj == died:
                    _, raw = os.waitpid(host.pid, 0)
                    return exit_of(raw)
                elif data := _read(key.fd):
                    line += data
                else:
                    return ACTOR_GONE
            if time.monotonic() >= look_at:
                look_at = time.monotonic() + look_s
                host.note_segments()
    os.close(died)
    return line


def end(host: HostProcess) -> bytes:
    """Kills what is left; returns what it has printed meanwhile."""
    host.note_segments()
    end_tree()
    os.set_blocking(host.out, False)
    return b"".join(iter(lambda: _read(host.out), b""))


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 1 << 16)
    except OSError:
        return b""


def say(pipe: socket.socket, news: News) -> None:
    with contextlib.suppress(OSError):  # the actor is gone: `tend` sees the closed pipe
        pipe.sendall(encode_news(news) + b"\n")


def end_tree() -> None:
    """Kills until no child is left; a killed process's children become ours and are killed in the next turn."""
    while True:
        for pid in tree(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _watch_for_segments() -> int | None:
    """An inotify descriptor that can be read when a name appears under /dev/shm; None where the kernel gives none."""
    news: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if news < 0:
        return None
    if _libc.inotify_add_watch(news, os.fsencode(SHARED_MEMORY), _IN_CREATE) < 0:
        os.close(news)
        return None
    return news


def _existing_segments() -> dict[int, str]:
    """Names under /dev/shm by inode: a semaphore is mapped under another name than it has there."""
    with contextlib.suppress(OSError):
        return {entry.inode(): entry.name for entry in os.scandir(SHARED_MEMORY)}
    return {}


def _segments_of(pids: list[int]) -> set[str]:
    """Names under /dev/shm that these processes map or hold open."""
    existing = _existing_segments()
    if not existing:
        return set()
    return {name for pid in pids for name in _segments_in_use(pid, existing)}


def _segments_in_use(pid: int, existing: dict[int, str]) -> set[str]:
    prefix, inodes = str(SHARED_MEMORY) + "/", set()
    try:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            if prefix in line:
                inodes.add(int(line.split(maxsplit=5)[4]))
        for fd in os.listdir(f"/proc/{pid}/fd"):
            path = f"/proc/{pid}/fd/{fd}"
            if os.readlink(path).startswith(prefix):
                inodes.add(os.stat(path).st_ino)
    except OSError:
        pass  # it ended while we looked
    return {existing[inode] for inode in inodes & existing.keys()}


def _is_mapped(name: str, existing: dict[int, str]) -> bool:
    """Whether any process still uses the segment: a peer engine may have attached it."""
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    return any(name in _segments_in_use(pid, existing) for pid in pids)


if __name__ == "__main__":
    actor_pipe = socket.socket(fileno=int(sys.argv[1]))
    with actor_pipe.makefile("rb") as reader:
        first_line = reader.readline()
    watch(decode_spec(first_line), actor_pipe, exec_host)
