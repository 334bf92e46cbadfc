"""A reaper in a process of its own and our end of its pipe, for the tests of this folder."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

from disagg.host_spec import HostSpec


class ReaperPipe:
    """`program` gets the number of its end of the pipe; `first_line` is what is said to it first."""

    def __init__(self, program: str, first_line: bytes) -> None:
        self.pipe, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program, str(theirs.fileno())], pass_fds=[theirs.fileno()]
            )
        self.pipe.settimeout(60)
        self.pipe.sendall(first_line + b"\n")
        self._lines = self.pipe.makefile("rb")

    def says(self, event: str) -> dict[str, object]:
        return self.says_all(event)[event]

    def says_all(self, *events: str) -> dict[str, dict[str, object]]:
        """In whatever order they come; others are passed over."""
        said: dict[str, dict[str, object]] = {}
        while not said.keys() >= set(events):
            line = self._lines.readline()
            assert line, f"the pipe closed after {list(said)}, before all of {events}"
            message: dict[str, object] = json.loads(line)
            said[str(message["event"])] = message
        return said

    def hang_up(self) -> None:
        self._lines.close()
        self.pipe.close()


def host_spec(log: Path, scratch: Path, *, incarnation: int = 1, role: str = "decode", fork: bool) -> HostSpec:
    """Of a host that has no SGLang."""
    return HostSpec(
        engine_id="decode-0",
        incarnation=incarnation,
        role=role,
        arguments={},
        environment={},
        plane_host="127.0.0.1",
        log_path=str(log),
        scratch=str(scratch),
        fork=fork,
    )
