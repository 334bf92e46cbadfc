"""multiprocessing's "spawn" with interpreters that were started, and have imported everything, before they are needed.

Way:   host: Process.start() -> [Spares] =socket=> [a waiting child of that host] -> the process's target
In:    which modules' targets will be started; the process objects, as multiprocessing pickles them
Out:   a process that differs from a spawned one in nothing but its age: a real child with its exit status and
       sentinel, and of what its parent has at that moment the environment, working folder, limits, CPUs and signals
Owns:  the children that wait. They die with their parent, and when their socket closes
Fails: where no spare fits or lives the process is spawned as ever, and standard error says why

The protocol is that of multiprocessing.popen_spawn_posix; descriptors travel over the socket instead of by inheritance.
"""

from __future__ import annotations

import ctypes
import importlib
import io
import json
import os
import resource
import selectors
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import context, popen_fork, popen_spawn_posix, reduction, resource_tracker, spawn, util
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from disagg.host_spec import Spare

# Variables that the process or an imported library may have read at its start: a later change would do nothing.
FIXED = ("LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH", "CUDA_VISIBLE_DEVICES")
UNUSED_S = 300.0  # a process that came from a spare ends its own unused spares this long after
_LENGTH_BYTES = 4
_PR_SET_PDEATHSIG = 1
_LIMITS = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]
_COMMAND = "from disagg.process.handover import wait_to_be_used; wait_to_be_used()"  # not -m: pickles name this module


class NoSpare(Exception):
    """No waiting child fits; the message says why. The process is spawned instead."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    module: str
    pid: int
    door: socket.socket


class Spares:
    """The waiting children of this process. After `install`, multiprocessing starts its processes from them."""

    def __init__(self, wanted: Iterable[Spare]) -> None:
        self._born_with = {name: os.environ.get(name) for name in FIXED}
        self._executable = os.fsdecode(spawn.get_executable() or sys.executable)
        self._lock = threading.RLock()  # a data-parallel controller starts its schedulers from threads
        self._waiting = [_start(spare, self._executable) for spare in wanted]
        self._expects_some = bool(self._waiting)
        self.started: list[str] = []  # the module of each process that was started, in order
        self.unfit = ""  # why a process was spawned although spares were expected; empty: none was

    def install(self) -> None:
        context.SpawnProcess._Popen = staticmethod(self._popen)  # type: ignore[method-assign, assignment]

    @property
    def doors(self) -> list[socket.socket]:
        """One socket a waiting child. It becomes readable when the child is ready, or dead."""
        return [waiting.door for waiting in self._waiting]

    @property
    def pids(self) -> list[int]:
        return [waiting.pid for waiting in self._waiting]

    def hear(self, door: socket.socket) -> bytes:
        """What the child says when it is ready; empty: it is dead."""
        said = _receive(door)
        if not said:
            dead = next(waiting for waiting in self._waiting if waiting.door is door)
            self._waiting.remove(dead)
            _end(dead)
        return said

    def until_ready(self) -> None:
        with selectors.DefaultSelector() as selector:
            for door in self.doors:
                selector.register(door, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select():
                    selector.unregister(key.fileobj)
                    self.hear(key.fileobj)  # type: ignore[arg-type]

    def dismiss(self) -> int:
        """Ends those that were not used; returns how many."""
        with self._lock:
            left, self._waiting = self._waiting, []
        for waiting in left:
            _end(waiting)
        return len(left)

    def _popen(self, process: Any) -> popen_fork.Popen:
        module = str(getattr(process._target, "__module__", ""))
        with self._lock:
            self.started.append(module)
            try:
                return self._hand_over(process, module)
            except NoSpare as error:
                if self._expects_some:
                    sys.stderr.write(f"no spare process for {module}: {error}; it is spawned\n")
        return popen_spawn_posix.Popen(process)

    def _hand_over(self, process: Any, module: str) -> popen_fork.Popen:
        waiting = self._fit_for(module)
        try:
            return _HandedOver(process, waiting)
        except OSError as error:
            _end(waiting)
            raise NoSpare(f"it died while waiting ({error})") from error

    def _fit_for(self, module: str) -> _Waiting:
        differs = next((name for name in FIXED if os.environ.get(name) != self._born_with[name]), "")
        if differs:
            self.unfit = f"{differs} differs from process to process"
        if os.fsdecode(spawn.get_executable() or "") != self._executable:
            self.unfit = "SGLang starts it through numactl (env SGLANG_AUTO_NUMA_BIND: '0' turns that off)"
        if self.unfit:
            self.dismiss()
            raise NoSpare(self.unfit)
        for waiting in self._waiting:
            if waiting.module == module:
                self._waiting.remove(waiting)
                return waiting
        raise NoSpare("none waits, or it has died")


def _start(spare: Spare, executable: str) -> _Waiting:
    ours, theirs = socket.socketpair()
    with theirs:
        words = [executable, "-P", "-c", _COMMAND, str(theirs.fileno()), msgspec.json.encode(spare).decode()]
        pid = util.spawnv_passfds(os.fsencode(executable), words, [theirs.fileno()])
    return _Waiting(spare.module, pid, ours)


def _end(waiting: _Waiting) -> None:
    waiting.door.close()
    with suppress(ProcessLookupError):
        os.kill(waiting.pid, signal.SIGKILL)
    os.waitpid(waiting.pid, 0)


# In the parent: what multiprocessing calls to start a process.

_received: list[int] = []  # in the child: the descriptors that came for its process object


class _Received:
    """Stands for a descriptor in a pickle: `index` is its position among the descriptors that were sent."""

    def __init__(self, index: int) -> None:
        self.index = index

    def detach(self) -> int:
        return _received[self.index]


class _HandedOver(popen_fork.Popen):
    method = "spawn"
    DupFd = _Received

    def __init__(self, process: Any, waiting: _Waiting) -> None:
        self._fds: list[int] = []
        self._spare = waiting
        super().__init__(process)

    def duplicate_for_child(self, fd: int) -> int:
        self._fds.append(fd)
        return len(self._fds) - 1

    def _launch(self, process: Any) -> None:
        pickled = io.BytesIO()
        context.set_spawning_popen(self)  # type: ignore[arg-type]
        try:
            reduction.dump(spawn.get_preparation_data(process._name), pickled)
            reduction.dump(process, pickled)
        finally:
            context.set_spawning_popen(None)
        self.pid = self._spare.pid
        parent_r, child_w = os.pipe()  # the child keeps its end for as long as it lives: our sentinel
        child_r, parent_w = os.pipe()
        tracker = resource_tracker.getfd()
        assert tracker is not None
        fds = [child_r, child_w, tracker, *self._fds]
        try:
            _send(self._spare.door, json.dumps(_surroundings() | {"fds": len(fds)}).encode())
            reduction.sendfds(self._spare.door, fds)
        except OSError:
            util.close_fds(parent_r, parent_w)  # type: ignore[attr-defined]
            raise
        finally:
            util.close_fds(child_r, child_w)  # type: ignore[attr-defined]
        self.sentinel = parent_r
        # The door stays open: closing a socket with unread data would drop what the child has yet to read.
        mine = (parent_r, parent_w, self._spare.door.detach())
        self.finalizer = util.Finalize(self, util.close_fds, mine)  # type: ignore[attr-defined]
        with open(parent_w, "wb", closefd=False) as file:
            file.write(pickled.getbuffer())


def _surroundings() -> dict[str, Any]:
    """What a spawned process inherits from the one that spawns it, beside descriptors and working folder."""
    return {
        "environment": dict(os.environ),
        "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
        "ignored": [int(number) for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN],
        "limits": [resource.getrlimit(limit) for limit in _LIMITS],
        "cpus": sorted(os.sched_getaffinity(0)),
    }


# In the child.


def wait_to_be_used() -> NoReturn:
    """The whole life of a spare: import, say so, wait, become the process."""
    _can_be_titled()
    door, spare = socket.socket(fileno=int(sys.argv[1])), msgspec.json.decode(sys.argv[2], type=Spare)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    children = Spares(spare.children)
    children.install()
    importlib.import_module(spare.module)
    children.until_ready()
    with suppress(OSError):
        _send(door, json.dumps({"has_context": has_cuda_context()}).encode())
    order = _receive(door)
    if not order:
        os._exit(0)  # its parent is gone, or needs it no longer
    told = json.loads(order)
    data, _alive, tracker, *_received[:] = reduction.recvfds(door, told["fds"])
    door.close()
    _surround(told)
    if spare.children:
        unused = threading.Timer(UNUSED_S, children.dismiss)
        unused.daemon = True
        unused.start()
    resource_tracker._resource_tracker._fd = tracker  # type: ignore[attr-defined]
    sys.exit(spawn._main(data, os.dup(data)))


def _can_be_titled() -> None:
    """SGLang gives its processes titles, which setproctitle can only write as long as it finds the first environment.
    And it is not to write over that: the janitor looks there for the deployment."""
    import setproctitle  # SGLang's; a driver may be without

    os.environ["SPT_NOENV"] = "1"
    setproctitle.getproctitle()
    del os.environ["SPT_NOENV"]


def _surround(told: dict[str, Any]) -> None:
    environment = told["environment"]
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    os.environ.update(environment)
    tempfile.tempdir = None  # it may have been read from the environment before
    for number in signal.valid_signals():
        if number in told["ignored"]:
            signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, told["blocked"])
    for limit, values in zip(_LIMITS, told["limits"], strict=True):
        if resource.getrlimit(limit) != tuple(values):
            resource.setrlimit(limit, tuple(values))
    if sorted(os.sched_getaffinity(0)) != told["cpus"]:
        for thread in os.listdir("/proc/self/task"):
            with suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread), told["cpus"])


def has_cuda_context() -> bool:
    """Whether this process holds a context, which is GPU memory, on any GPU it sees. It initialises nothing."""
    if "libcuda.so" not in Path("/proc/self/maps").read_text():
        return False
    driver = ctypes.CDLL("libcuda.so.1")
    count, flags, is_active = ctypes.c_int(), ctypes.c_uint(), ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)):
        return False  # not initialised: there is none
    for device in range(count.value):
        failed = driver.cuDevicePrimaryCtxGetState(device, ctypes.byref(flags), ctypes.byref(is_active))
        if not failed and is_active.value:
            return True
    return False


def _send(door: socket.socket, message: bytes) -> None:
    door.sendall(len(message).to_bytes(_LENGTH_BYTES, "big") + message)


def _receive(door: socket.socket) -> bytes:
    """A whole message; empty when the other end is gone."""
    try:
        length = _exactly(door, _LENGTH_BYTES)
        return _exactly(door, int.from_bytes(length, "big")) if length else b""
    except OSError:
        return b""


def _exactly(door: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = door.recv(count - len(data))
        if not part:
            return b""
        data += part
    return data
