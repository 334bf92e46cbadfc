"""How a host tells each scheduler on its node that a peer's incarnation is dead.

Way:   plane server -> engine -> [announce] =a file in the scratch folder=> [follow], a thread in each scheduler
Why:   SGLang's RPC socket gives each message to one of the schedulers in turn: with DP attention most would not get it,
       and waiting for all answers would never end. It is a thread, because an idle scheduler's loop sleeps, and a busy
       one's reads messages only between steps
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

LOOK_S = 0.1
_NAME = "dead-peers"

log = logging.getLogger(__name__)


def announce(folder: Path, life: str) -> None:
    """Notes `life` down for the schedulers. On a full disk the peer's memory stays mapped until SGLang itself
    notices."""
    try:
        with (folder / _NAME).open("a") as file:
            file.write(f"{life}\n")
    except OSError as error:
        log.error("the schedulers were not told that %s is dead: %s", life, error)


def follow(folder: Path, drop: Callable[[str], None]) -> None:
    """`drop` is called from a thread of its own, for as long as this process lives."""
    dead_peers = DeadPeers(folder, drop)

    def run() -> None:
        while True:
            time.sleep(LOOK_S)
            dead_peers.read_new()

    threading.Thread(target=run, name="dead peers", daemon=True).start()


class DeadPeers:
    """The scheduler's end. `drop` is called once for each life that was told."""

    def __init__(self, folder: Path, drop: Callable[[str], None]) -> None:
        self._path, self._drop = folder / _NAME, drop
        self._told_count = 0

    def read_new(self) -> None:
        try:
            *lives, _half_written = self._path.read_bytes().split(b"\n")  # one an incarnation: it stays small
        except FileNotFoundError:
            return
        new, self._told_count = lives[self._told_count :], len(lives)
        for life in map(bytes.decode, new):
            try:
                self._drop(life)
            except Exception:  # the next one is to be dropped nevertheless
                log.exception("the dead peer %s could not be dropped", life)
