"""How a host tells each scheduler on its node that a peer's incarnation is dead.

Way:   plane server -> engine -> [tell] =a file in the scratch folder=> [DeadPeers.look] in each scheduler, every second
Why:   SGLang's RPC socket deals its messages round among the schedulers that connect to it: with DP attention most
       would hear of nothing, and whoever waits for an answer would wait for ever
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

LOOK_S = 1.0
_NAME = "dead-peers"


def tell(folder: Path, life: str) -> None:
    with (folder / _NAME).open("a") as file:
        file.write(f"{life}\n")


class DeadPeers:
    """The scheduler's end. `drop` is called once for each life that was told."""

    def __init__(self, folder: Path, drop: Callable[[str], None]) -> None:
        self._path, self._drop = folder / _NAME, drop
        self._read_bytes = 0
        self._look_at_s = 0.0

    def look(self, now_s: float | None = None) -> None:
        """Costs a comparison, but for once a second."""
        now_s = time.monotonic() if now_s is None else now_s
        if now_s < self._look_at_s:
            return
        self._look_at_s = now_s + LOOK_S
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            return
        if size == self._read_bytes:
            return
        with self._path.open("rb") as file:
            file.seek(self._read_bytes)
            whole, _, _ = file.read().rpartition(b"\n")  # the last line may be half written
        if whole:
            self._read_bytes += len(whole) + 1
            for life in whole.decode().splitlines():
                self._drop(life)
