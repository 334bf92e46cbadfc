"""The janitor ends what provably belongs to its deployment, whatever title it has, and nobody else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from disagg import host_spec as spec
from disagg.cluster import janitor

OURS, ANOTHERS = "0badcafe", "deadbeef"
NOBODY = 65534

# As Ray's processes do it: a title over its command, and, without SPT_NOENV, over its environment.
TITLED = """
import sys, time, setproctitle
log = open(sys.argv[1] + "/agent.log", "w")
setproctitle.setproctitle("ray::SomeAgent" + " " * 5000)
print("up", flush=True)
time.sleep(60)
"""
# Its child's environment has no mark, and the parent ends when it is told to.
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env={}, stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
sys.stdin.read()
"""


class Others:
    """Processes of a test: each is ended with it."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, *command: str, deployment: str = "", **more: object) -> subprocess.Popen[bytes]:
        environment = os.environ | ({spec.DEPLOYMENT_VARIABLE: deployment, "SPT_NOENV": "1"} if deployment else {})
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            **more,  # type: ignore[call-overload]
        )
        self.started.append(process)
        return process


@pytest.fixture
def others() -> Iterator[Others]:
    some = Others()
    yield some
    for process in some.started:
        process.kill()
        process.communicate()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A private Ray's, with a log in it."""
    folder = tmp_path / "disagg-ray-test"
    folder.mkdir()
    (folder / "raylet.out").write_text("a line\n")
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(parent.stat().st_mode | 0o055)  # another user is to read it
    return folder


def _sweep(folder: Path, **more: object) -> None:
    janitor.sweep(OURS, [str(folder)], session=os.getsid(0), patience_s=0.2, **more)  # type: ignore[arg-type]


def test_the_mark_is_the_one_that_every_process_of_a_deployment_carries() -> None:
    assert janitor.DEPLOYMENT_VARIABLE == spec.DEPLOYMENT_VARIABLE


BYSTANDERS: dict[str, Callable[[Others, Path], subprocess.Popen[bytes]]] = {
    "who follows a log": lambda others, folder: others.start("tail", "-f", str(folder / "raylet.out")),
    "who has it in the command line": lambda others, folder: others.start(
        sys.executable, "-c", "import time; time.sleep(60)", str(folder)
    ),
    "whose working folder it is": lambda others, folder: others.start("sleep", "60", cwd=folder),
    "another deployment's process": lambda others, folder: others.start("sleep", "60", deployment=ANOTHERS),
    "one whose mark only begins like ours": lambda others, folder: others.start("sleep", "60", deployment=f"{OURS}0"),
    "another user, with a log": lambda others, folder: others.start(
        "tail", "-f", str(folder / "raylet.out"), **({"user": NOBODY} if os.getuid() == 0 else {})
    ),
}


def test_bystanders_live_on(others: Others, folder: Path) -> None:
    bystanders = {who: start(others, folder) for who, start in BYSTANDERS.items()}
    ours = others.start("sleep", "60", deployment=OURS)
    _until(lambda: ours.pid in {process.pid for process in janitor.Search(OURS).look()})
    _sweep(folder, now=True)
    assert ours.wait(5) == -signal.SIGKILL
    assert {who: process.poll() for who, process in bystanders.items()} == dict.fromkeys(bystanders)
    assert not folder.exists()


def test_a_process_that_hides_behind_a_title_is_found_by_its_mark(others: Others, folder: Path) -> None:
    agent = others.start(sys.executable, "-c", TITLED, str(folder), deployment=OURS)
    assert agent.stdout is not None
    assert agent.stdout.readline() == b"up\n"
    assert str(folder).encode() not in Path(f"/proc/{agent.pid}/cmdline").read_bytes()
    _sweep(folder)
    assert agent.wait(5) == -signal.SIGKILL


def test_a_descendant_without_a_mark_is_ours_also_when_its_parent_has_died(others: Others) -> None:
    parent = others.start(sys.executable, "-c", PARENT, deployment=OURS)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    search = janitor.Search(OURS)
    assert {parent.pid, child} <= {process.pid for process in search.look()}
    parent.communicate()
    left = search.look()
    assert [process.pid for process in left] == [child]
    janitor.kill(left[0])
    _until(lambda: not search.look())


def test_an_id_that_was_given_out_anew_is_left_alone(others: Others) -> None:
    sleeper = others.start("sleep", "60")
    now = janitor.process_of(sleeper.pid)
    assert now is not None
    janitor.kill(janitor.Process(now.pid, now.started - 1, now.parent, now.session))
    with pytest.raises(subprocess.TimeoutExpired):
        sleeper.wait(0.3)
    janitor.kill(now)
    assert sleeper.wait(5) == -signal.SIGKILL


def test_those_of_the_drivers_session_need_no_patience(others: Others, folder: Path) -> None:
    """They are Ray's. Reapers are in sessions of their own: they are to end by themselves."""
    of_ray = others.start("sleep", "60", deployment=OURS)
    reaper = others.start("sleep", "60", deployment=OURS, start_new_session=True)
    _until(lambda: {of_ray.pid, reaper.pid} <= {process.pid for process in janitor.Search(OURS).look()})
    ended: list[int | None] = []
    kill = janitor.kill

    def note(process: janitor.Process) -> None:
        ended.append(process.pid)
        kill(process)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(janitor, "kill", note)
        _sweep(folder)
    assert ended.index(of_ray.pid) < ended.index(reaper.pid)
    assert len(ended) >= 2


DRIVER = """
import os, sys, time
from disagg.cluster.janitor import Janitor
janitor = Janitor(sys.argv[1], [sys.argv[2]])
print(janitor._process.pid, flush=True)
sys.stdin.read(1)
{end}
"""


def test_no_signal_to_its_whole_tree_ends_it_before_it_can_ignore_them(others: Others, folder: Path) -> None:
    """`ray job stop` signals a driver and all its descendants: the janitor may be a process of a few milliseconds."""
    driver = others.start(sys.executable, "-c", DRIVER.format(end="os._exit(1)"), OURS, str(folder))
    assert driver.stdout is not None
    first = int(driver.stdout.readline())
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(first, number)
    ours = others.start("sleep", "60", deployment=OURS)
    driver.communicate(b".")
    assert ours.wait(10) == -signal.SIGKILL
    _until(lambda: not folder.exists())


def test_it_never_ends_a_driver_that_still_runs(others: Others, folder: Path) -> None:
    """Not even one that has a file of its private Ray open, as all have."""
    end = "log = open(sys.argv[2] + '/driver.log', 'w'); janitor.hurry(); janitor.close(); time.sleep(3)"
    driver = others.start(sys.executable, "-c", DRIVER.format(end=end), OURS, str(folder))
    assert driver.stdout is not None
    driver.stdout.readline()
    driver.communicate(b".", timeout=30)
    assert driver.returncode == 0
    _until(lambda: not folder.exists())


def _until(holds: Callable[[], object], limit_s: float = 20) -> None:
    until = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < until, "it did not come to hold"
        time.sleep(0.02)
