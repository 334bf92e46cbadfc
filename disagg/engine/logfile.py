"""An engine's log: a file with a bounded size and one older generation, and its last lines in memory."""

from __future__ import annotations

import re
from collections import deque
from pathlib import Path

GENERATION_MAX_BYTES = 32 << 20
TAIL_LINES = 40
_TABLE = re.compile(r"\]\s+[|+]")  # UCX's tables of protocols, a screenful for each new endpoint


class RotatingLog:
    """Takes the raw output of an engine's processes. `path` is the current file, `path`.1 the one before it."""

    def __init__(self, path: Path, max_bytes: int = GENERATION_MAX_BYTES) -> None:
        self._path, self._max_bytes = path, max_bytes
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        self._partial = b""
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)

    def write(self, data: bytes) -> list[str]:
        """Appends, and returns the lines that this completed."""
        if self._file.tell() + len(data) > self._max_bytes:
            self._file.close()
            self._path.replace(self._path.with_name(self._path.name + ".1"))
            self._file = self._path.open("ab")
        self._file.write(data)
        self._file.flush()
        *whole, self._partial = (self._partial + data).split(b"\n")
        lines = [line.decode(errors="replace") for line in whole]
        self.tail.extend(line for line in lines if line.strip() and not _TABLE.search(line))
        return lines

    def close(self) -> None:
        self._file.close()


def last_lines(path: Path, count: int) -> list[str]:
    """The last `count` lines over both generations; empty where there is no log."""
    lines: list[str] = []
    for part in (path.with_name(path.name + ".1"), path):
        if part.exists():
            lines += part.read_text(errors="replace").splitlines()
    return lines[-count:]
