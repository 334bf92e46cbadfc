"""An engine's log: a file with a bounded size and one older generation, and its last lines in memory.

Way:   the output of an engine's processes -> reaper -> [RotatingLog] -> a file, for `disagg logs`; the tail, for errors
Fails: never. What cannot be written (a full disk, a folder that is a file) is left out and counted; the file is tried
       again later, and `trouble` says why
"""

from __future__ import annotations

import io
import re
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

GENERATION_MAX_BYTES = 32 << 20
TAIL_LINES = 40
ASKED_LINES_MAX, ASKED_BYTES_MAX = 10_000, 8 << 20  # by `disagg logs`, and whoever else asks a frontend
LINE_MAX_BYTES = 64 << 10  # a longer one, or a line that never ends, is written in parts
RETRY_S = 5.0  # after a write that failed
_TABLE = re.compile(rb"\]\s+[|+]")  # UCX's tables of protocols, a screenful for each new endpoint


class RotatingLog:
    """Takes the raw output of an engine's processes. `path` is the current file, `path`.1 the one before it.

    `keep_tables`: also write UCX's tables, which are four fifths of what an engine prints. We make UCX print them to
    read the lane from them; `write` returns them to its caller in any case.
    """

    def __init__(
        self,
        path: Path,
        max_bytes: int = GENERATION_MAX_BYTES,
        *,
        keep_tables: bool = False,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._max_bytes, self._keep_tables, self._now_s = path, max_bytes, keep_tables, now_s
        self._file: io.FileIO | None = None
        self._partial = b""
        self._lost_bytes, self._is_torn = 0, False  # not in the file since it last took something; it ends in mid-line
        self._retry_at_s = 0.0
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.trouble = ""  # why the file lacks lines that came; empty again once it takes lines
        self._append(b"")

    def write(self, data: bytes) -> list[str]:
        """Appends, and returns the lines that this completed."""
        *whole, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > LINE_MAX_BYTES:
            whole.append(self._partial)
            self._partial = b""
        said = [line for line in whole if not _TABLE.search(line)]
        if kept := whole if self._keep_tables else said:
            self._append(b"\n".join(kept) + b"\n")
        self.tail.extend(line.decode(errors="replace") for line in said if line.strip())
        return [line.decode(errors="replace") for line in whole]

    def close(self) -> None:
        if self._partial:
            self.write(b"\n")
        if self._file is not None:
            self._file.close()
            self._file = None

    def _append(self, data: bytes) -> None:
        if self._file is None and self._now_s() < self._retry_at_s:
            self._lost_bytes += len(data)
            return
        left = self._note() + data
        try:
            file = self._opened(len(left))
            while left:
                written = file.write(left) or 0
                self._is_torn = not left[:written].endswith(b"\n")
                left = left[written:]
        except OSError as error:
            self.trouble = f"{error.strerror or error}: {error.filename or self._path}"
            self._lost_bytes += min(len(left), len(data))
            self._retry_at_s = self._now_s() + RETRY_S
            if self._file is not None:
                self._file.close()
                self._file = None
        else:
            self.trouble, self._lost_bytes = "", 0

    def _note(self) -> bytes:
        """A line that says, before the next one, what is missing from the file and why."""
        if not self._lost_bytes:
            return b""
        note = f"[disagg] {self._lost_bytes} bytes of this log were lost: {self.trouble}\n".encode()
        return b"\n" + note if self._is_torn else note

    def _opened(self, more_bytes: int) -> io.FileIO:
        if self._file is not None and self._file.tell() + more_bytes > self._max_bytes:
            self._file.close()
            self._file = None
            self._path.replace(self._path.with_name(self._path.name + ".1"))
        if self._file is None:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = io.FileIO(self._path, "ab")
        return self._file


def last_lines(path: Path, count: int) -> list[str]:
    """The last `count` lines over both generations, of ASKED_BYTES_MAX at most; empty where there is no log."""
    whole = b""
    for part in (path.with_name(path.name + ".1"), path):
        if part.exists():
            with part.open("rb") as file:
                file.seek(max(0, part.stat().st_size - ASKED_BYTES_MAX - 1))
                whole += file.read()
    end = whole[-ASKED_BYTES_MAX:]
    if len(end) < len(whole) and whole[-len(end) - 1 : -len(end)] != b"\n":
        end = end.partition(b"\n")[2]  # its first line has lost its beginning
    return end.decode(errors="replace").splitlines()[-count:]
