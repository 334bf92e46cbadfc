"""A process that was handed to a waiting interpreter is like one that was spawned, but for its age."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

PARENT = """
import json, multiprocessing, os, resource, signal, sys, tempfile, time
from multiprocessing.connection import wait
sys.path.insert(0, {folder!r})
import handed
from disagg.host_spec import Spare
from disagg.process.handover import Spares
multiprocessing.set_start_method("spawn")
spares = Spares([Spare("handed")])
spares.install()
if {ready}: spares.until_ready()
{script}
"""

HANDED = """
import json, multiprocessing, os, resource, setproctitle, signal, sys, tempfile, time
from disagg.process import handover

handover.UNUSED_S = 2.0
BORN_S = time.monotonic()
tempfile.gettempdir()

def tell(writer, *extra):
    setproctitle.setproctitle("handed over")
    writer.send({
        "title": open("/proc/self/cmdline").read().rstrip("\\0"),
        "kept": b"BORN_WITH=1" in open("/proc/self/environ", "rb").read().split(b"\\0"),
        "pid": os.getpid(), "parent": os.getppid(), "born_s": BORN_S, "name": multiprocessing.current_process().name,
        "environment": dict(os.environ), "folder": os.getcwd(), "temporary": tempfile.gettempdir(),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0], "cpus": sorted(os.sched_getaffinity(0)),
        "blocked": signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "ignored": signal.getsignal(signal.SIGUSR2) == signal.SIG_IGN, "extra": extra,
    })

def leave(status):
    print("leaves", flush=True)
    sys.exit(status)

def fail():
    raise ValueError("as spawned ones do")

def rest():
    time.sleep(600)

def through(lock, queue):
    with lock:
        queue.put(os.getpid())

def nested(writer):
    ours, theirs = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.Process(target=tell, args=(theirs,))
    child.start()
    writer.send({"born_s": BORN_S, "child": ours.recv()["born_s"], "now_s": time.monotonic()})
    child.join()
"""


def run(tmp_path: Path, script: str, ready: bool = True, expect: int = 0) -> tuple[list[Any], str]:
    """What the parent printed as JSON lines, and what stood on standard error."""
    (tmp_path / "handed.py").write_text(HANDED)
    text = PARENT.format(folder=str(tmp_path), script=script, ready=ready)
    (tmp_path / "parent.py").write_text(
        "if __name__ == '__main__':\n" + "".join(f"    {x}\n" for x in text.splitlines())
    )
    answer = subprocess.run(
        [sys.executable, str(tmp_path / "parent.py")],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"BORN_WITH": "1", "PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd(), *sys.path])},
    )
    assert answer.returncode == expect, answer.stderr
    return [json.loads(line) for line in answer.stdout.splitlines() if line.startswith(("{", "["))], answer.stderr


TELL = """
os.environ["SAID_LATE"] = "1"; os.environ.pop("HOME", None); os.environ["TMPDIR"] = os.environ["THEIRS"] = {folder!r}
os.chdir({folder!r})
resource.setrlimit(resource.RLIMIT_NOFILE, (123, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]); signal.signal(signal.SIGUSR2, signal.SIG_IGN)
reader, writer = multiprocessing.Pipe(duplex=False)
began_s = time.monotonic()
process = multiprocessing.Process(target=handed.tell, args=(writer, "an argument"), name="told")
process.start(); writer.close()
told = reader.recv(); process.join()
print(json.dumps(told | {{"began_s": began_s, "me": os.getpid(), "exit": process.exitcode, "mine": process.pid,
    "cpu": sorted(os.sched_getaffinity(0))}}))
try: reader.recv()
except EOFError: print("[]")
"""


@pytest.mark.parametrize("ready", [True, False])
def test_it_has_what_its_parent_has_at_that_moment(tmp_path: Path, ready: bool) -> None:
    (told, closed), errors = run(tmp_path, TELL.format(folder=str(tmp_path)), ready)
    assert told["pid"] == told["mine"]
    assert told["parent"] == told["me"]
    if ready:
        assert told["born_s"] < told["began_s"], "it was spawned, not handed over"
    assert (told["exit"], told["name"], told["extra"]) == (0, "told", ["an argument"])
    assert told["environment"]["SAID_LATE"] == "1"
    assert "HOME" not in told["environment"]
    assert told["folder"] == told["temporary"] == str(tmp_path)
    assert (told["files"], told["blocked"], told["ignored"]) == (123, True, True)
    assert told["cpus"] == told["cpu"]
    assert told["title"] == "handed over"
    assert told["kept"], "the janitor finds processes by the environment that the kernel shows"
    assert closed == [], "the pipe's only other end was in the child"
    assert "no spare" not in errors


def test_its_exit_is_seen_as_ever(tmp_path: Path) -> None:
    script = """
process = multiprocessing.Process(target=handed.leave, args=(7,))
process.start()
woken = wait([process.sentinel], 30) == [process.sentinel]; process.join(30)
print(json.dumps([woken, process.exitcode, process.is_alive(), len(multiprocessing.active_children())]))
"""
    (seen,), _ = run(tmp_path, script)
    assert seen == [True, 7, False, 0]


def test_its_output_goes_where_its_parents_does_and_a_traceback_too(tmp_path: Path) -> None:
    script = """
process = multiprocessing.Process(target=handed.fail)
process.start(); process.join()
print(json.dumps([process.exitcode]))
"""
    (seen,), errors = run(tmp_path, script)
    assert seen == [1]
    assert "ValueError: as spawned ones do" in errors


def test_it_can_be_killed_and_that_is_its_exit_status(tmp_path: Path) -> None:
    script = """
process = multiprocessing.Process(target=handed.rest)
process.start()
process.kill(); process.join(30)
print(json.dumps([process.exitcode]))
"""
    (seen,), _ = run(tmp_path, script)
    assert seen == [-9]


def test_locks_and_queues_cross(tmp_path: Path) -> None:
    script = """
lock, queue = multiprocessing.Lock(), multiprocessing.Queue()
process = multiprocessing.Process(target=handed.through, args=(lock, queue))
process.start()
print(json.dumps([queue.get(timeout=30) == process.pid])); process.join()
"""
    (seen,), errors = run(tmp_path, script)
    assert seen == [True]
    assert "leaked" not in errors


def test_its_parents_death_is_its_own(tmp_path: Path) -> None:
    script = """
process = multiprocessing.Process(target=handed.rest)
process.start()
more = Spares([Spare("handed")])
print(json.dumps([process.pid, *more.pids]), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    (pids,), _ = run(tmp_path, script, expect=-9)
    for pid in pids:
        until = time.monotonic() + 10
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < until
            time.sleep(0.02)


def test_without_a_fit_spare_it_is_spawned_and_that_is_said(tmp_path: Path) -> None:
    script = """
def one():
    process = multiprocessing.Process(target=handed.leave, args=(3,))
    process.start(); process.join()
    print(json.dumps([process.exitcode]))
one()
one()
os.environ["CUDA_VISIBLE_DEVICES"] = "7"
one()
print(json.dumps([spares.unfit, len(spares.started)]))
"""
    seen, errors = run(tmp_path, script)
    assert seen == [[3], [3], [3], ["CUDA_VISIBLE_DEVICES differs from process to process", 3]]
    assert errors.count("it is spawned") == 2


def test_where_none_can_fit_any_longer_all_are_ended(tmp_path: Path) -> None:
    script = """
os.environ["CUDA_VISIBLE_DEVICES"] = "7"
process = multiprocessing.Process(target=handed.leave, args=(3,))
process.start(); process.join()
print(json.dumps([process.exitcode, len(spares.pids)]))
"""
    (seen,), _ = run(tmp_path, script)
    assert seen == [3, 0]


def test_one_that_died_while_it_waited_is_replaced(tmp_path: Path) -> None:
    script = """
os.kill(spares.pids[0], signal.SIGKILL); time.sleep(0.3)
process = multiprocessing.Process(target=handed.leave, args=(3,))
process.start(); process.join()
print(json.dumps([process.exitcode]))
"""
    (seen,), errors = run(tmp_path, script)
    assert seen == [3]
    assert "died while waiting" in errors


def test_those_that_are_not_needed_are_ended(tmp_path: Path) -> None:
    script = """
import psutil
print(json.dumps([spares.dismiss(), len(psutil.Process().children())]))
"""
    (seen,), _ = run(tmp_path, script)
    assert seen == [1, 0]


def test_a_spare_has_spares_of_its_own(tmp_path: Path) -> None:
    script = """
spares = Spares([Spare("handed", (Spare("handed"),))]); spares.install(); spares.until_ready()
began_s = time.monotonic()
reader, writer = multiprocessing.Pipe(duplex=False)
process = multiprocessing.Process(target=handed.nested, args=(writer,))
process.start()
print(json.dumps(reader.recv() | {"began_s": began_s})); process.join()
"""
    (told,), _ = run(tmp_path, script)
    assert told["born_s"] < told["began_s"]
    assert told["child"] < told["began_s"]


def test_a_spares_own_spares_end_when_they_are_not_used(tmp_path: Path) -> None:
    script = """
import psutil
spares = Spares([Spare("handed", (Spare("handed"), Spare("handed")))]); spares.install(); spares.until_ready()
process = multiprocessing.Process(target=handed.rest)
process.start()
began_s = time.monotonic()
seen = 0
while (left := psutil.Process(process.pid).children()) and time.monotonic() < began_s + 30:
    seen = max(seen, len(left)); time.sleep(0.05)
print(json.dumps([seen, len(left), process.is_alive()])); process.kill()
"""
    (seen,), _ = run(tmp_path, script)
    assert seen == [2, 0, True]
