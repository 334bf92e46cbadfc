"""A reader's machine and its terminals: a new folder, a new HOME, and nothing in the environment but what login gives.

In:    commands as the page has them
Out:   each one's status and output; one that stays in the foreground is left running until `interrupt` (Ctrl-C)
Owns:  with `apart`, a machine of its own: network, processes, /dev/shm and /tmp/ray are a namespace's (needs root), so
       that ports and clusters of this machine's others are not in the way. All of it ends with `Machine.close`
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from disagg.models.catalogue import cache_folder

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 240.0  # of one command; generous, as others may use the machine
POLL_S = 0.05
# Process 1 of the machine: bash, as it buries the dead. It ends with its standard input, and all else with it.
BOOT = """
ip link set lo up
mount -t tmpfs -o mode=1777,size=8g tmpfs /dev/shm
mkdir -p /tmp/ray && mount --bind {ray} /tmp/ray
exec bash -c 'echo up; read -r _'
"""


class Machine:
    def __init__(self, folder: Path, *, apart: bool) -> None:
        self.home, self.checkout = folder / "home", folder / "disagg"
        self._logs, self._numbers = folder, itertools.count(1)
        _as_make_demo_leaves_it(self.home, self.checkout)
        self._boot: subprocess.Popen[bytes] | None = None
        self._enter: list[str] = []
        self._terminals: list[Terminal] = []
        if apart:
            (folder / "ray").mkdir()
            boot = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-ec"]
            self._boot = subprocess.Popen(
                [*boot, BOOT.format(ray=folder / "ray")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            assert self._boot.stdout is not None
            assert self._boot.stdout.readline() == b"up\n", "no namespaces: is this root?"
            inside = Path(f"/proc/{self._boot.pid}/task/{self._boot.pid}/children").read_text().split()[0]
            self._enter = ["nsenter", "--target", inside, "--net", "--mount", "--pid", "--"]

    def terminal(self) -> Terminal:
        words = ["env", "-i", f"HOME={self.home}", "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG=C.UTF-8"]
        # A terminal is shown each line at once; into a file `ray job submit` writes every 8 KB.
        words.append("PYTHONUNBUFFERED=1")
        made = Terminal(
            [*self._enter, *words, "bash", "--norc", "--noprofile"],
            self.checkout,
            self._logs / f"terminal-{next(self._numbers)}",
        )
        self._terminals.append(made)
        return made

    def close(self) -> None:
        for terminal in self._terminals:
            terminal.close()
        if self._boot is not None:
            self._boot.communicate()  # closes its input


class Terminal:
    def __init__(self, command: list[str], folder: Path, log: Path) -> None:
        self._log, self._typed, self._count = log, log.with_suffix(".typed"), 0
        with log.open("wb") as output:
            self._shell = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._type(f"cd {shlex.quote(str(folder))}")  # nsenter ends in the root folder
        self._type("set -m")  # a command in the background is its own group, as in a terminal

    def run(self, command: str) -> tuple[int, str]:
        """To its end: status and output."""
        self._typed.write_text(command)
        return self._end_of(f'eval "$(cat {self._typed})" </dev/null')

    def stay(self, command: str, until: str) -> str:
        """Returns what it said when it has said `until`, and leaves it."""
        before = len(self._output())
        self._typed.write_text(command)
        self._type(f'eval "$(cat {self._typed})" </dev/null & disown -h %+; staying=$!')
        end = time.monotonic() + LIMIT_S
        while until not in (said := self._output()[before:]):
            assert time.monotonic() < end, f"`{command}` did not say {until!r} in {LIMIT_S:g} s:\n{said[-4000:]}"
            status, _ = self._end_of("kill -0 $staying")
            assert status == 0, f"`{command}` has ended:\n{self._output()[-4000:]}"
            time.sleep(1.0)
        return said

    def interrupt(self) -> tuple[int, str]:
        """Ctrl-C: what stays gets SIGINT, with its children; its status."""
        return self._end_of("kill -INT -$staying 2>/dev/null; wait $staying")

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._shell.pid, signal.SIGKILL)
        assert self._shell.stdin is not None
        self._shell.stdin.close()
        self._shell.wait()

    def _end_of(self, line: str) -> tuple[int, str]:
        self._count += 1
        mark = f"--status-{self._count}-"
        before = len(self._output())
        self._type(f'{line}; printf "\\n%s%d\\n" {mark} $?')
        end = time.monotonic() + LIMIT_S
        while f"\n{mark}" not in (said := self._output()[before:]) or not said.endswith("\n"):
            assert self._shell.poll() is None, f"`{line}` has ended the shell:\n{said[-4000:]}"
            assert time.monotonic() < end, f"`{self._typed.read_text()}` takes more than {LIMIT_S:g} s:\n{said[-4000:]}"
            time.sleep(POLL_S)
        output, _, status = said.rpartition(f"\n{mark}")
        return int(status.split()[0]), output

    def _output(self) -> str:
        return self._log.read_text(errors="replace")

    def _type(self, line: str) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.write(f"{line}\n".encode())
        self._shell.stdin.flush()


@contextlib.contextmanager
def machine(folder: Path, *, apart: bool) -> Iterator[Machine]:
    made = Machine(folder, apart=apart)
    try:
        yield made
    finally:
        made.close()


def _as_make_demo_leaves_it(home: Path, checkout: Path) -> None:
    """A copy of this checkout, with the .venv that runs this and its model: another 4 GB would say no more."""
    listed = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    for name in filter(None, subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split("\0")):
        if (ROOT / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, checkout / name)
    (checkout / ".venv").symlink_to(sys.prefix)
    (home / ".cache").mkdir(parents=True)
    (home / ".cache" / "disagg").symlink_to(cache_folder())
