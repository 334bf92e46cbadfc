"""Log lines on standard error, which do not block when nobody reads them.

Way:   logging -> [LossyStderr] -> a thread -> standard error
Why:   a write to a pipe that nobody empties waits for ever, and the process that serves would wait with it
Owns:  a bounded number of lines that wait; what comes beyond it is dropped and counted, and the next line that can be
       written says how many were
Fails: never; lines that a full disk or a closed pipe refuses are dropped
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque

from disagg.visible import LogLines

LINES_MAX = 10_000
FLUSH_S = 0.5  # at the process's end, for what still waits


class LossyStderr(logging.Handler):
    def __init__(self, fd: int = 2, lines_max: int = LINES_MAX) -> None:
        super().__init__()
        self._fd, self._lines_max = fd, lines_max
        self._lines: deque[bytes] = deque()
        self._dropped = 0
        self._changed = threading.Condition()
        self._is_writing = False
        threading.Thread(target=self._write_all, name="log lines", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record).encode(errors="backslashreplace") + b"\n"
        with self._changed:
            if len(self._lines) >= self._lines_max:
                self._dropped += 1
            else:
                self._lines.append(line)
                self._changed.notify_all()

    def flush(self) -> None:
        """Returns once all is written, or after FLUSH_S. `logging` calls it at the process's end."""
        with self._changed:
            self._changed.wait_for(lambda: not self._lines and not self._is_writing, FLUSH_S)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._lines)
                lines, dropped = b"".join(self._lines), self._dropped
                self._lines.clear()
                self._dropped, self._is_writing = 0, True
            if dropped:
                lines += b"[disagg] %d log lines were dropped here: nobody took them\n" % dropped
            self._write(lines)

    def _write(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:
            pass  # a full disk, a pipe without a reader: the next lines may have more luck


def log_to_stderr(format_: str) -> LossyStderr:
    """For a process that serves: its root logger, from INFO on."""
    handler = LossyStderr()
    handler.setFormatter(LogLines(format_))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    return handler
