"""Which transports carry KV, read from what UCX itself prints (UCX_PROTO_INFO=y) into an engine's log.

In:    lines such as `| 0..8K | copy-in | posix/memory |` inside a table headed by a remote memory write
Out:   the transport of the largest messages, in UCX's words: cuda_ipc, rc_mlx5, posix, sysv, cma, tcp, …
"""

from __future__ import annotations

import re

_HEAD = re.compile(r"\|\s*\S*.*\bremote memory write\b(.*)", re.IGNORECASE)
_ROW = re.compile(r"\|\s*(?P<range>\S+\.\.\S+)\s*\|(?P<how>[^|]*)\|(?P<where>[^|]*)\|")
_TRANSPORT = re.compile(r"\b(?P<name>[a-z][a-z0-9_]*)/[a-z]")


class LaneReader:
    """Reads a log line by line and returns a transport once per table, when its last row (largest messages) is
    complete.

    `gpu`: the KV is in a GPU's memory. UCX prints tables for host memory too; those are skipped then.
    """

    def __init__(self, *, gpu: bool) -> None:
        self._source = "from cuda" if gpu else "from host"
        self._in_write_table = False

    def read(self, line: str) -> str | None:
        if head := _HEAD.search(line):
            # A UCX that does not print the source's memory type: its table is taken as it is.
            self._in_write_table = self._source in head[1] or "from " not in head[1]
            return None
        if not self._in_write_table:
            return None
        row = _ROW.search(line)
        if row is not None:
            names = [match["name"] for match in _TRANSPORT.finditer(row["where"])]
            if names and row["range"].endswith("..inf"):
                self._in_write_table = False
                return "+".join(dict.fromkeys(names))
        elif not line.strip().strip("|+- []0123456789.:"):
            return None
        return None
