"""Datagrams by which the schedulers tell their host at once that a leg has reached a stage.

Way:   scheduler (plugins/stages.py) -> [say] =datagram=> [StageListener] -> SGLangEngine -> LegSink.on_stage
Fails: silently: a message that does not fit into the socket's buffer is lost; the leg's end carries the times all the
       same
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

STAGES = ("bootstrapping", "prefilling", "transferring")  # in their order; each leg comes to some of them
_NAME = "stages.sock"
_MESSAGE_BYTES = 256


def endpoint(folder: Path) -> socket.socket:
    """A scheduler's end."""
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    ours.connect(str(folder / _NAME))
    return ours


def say(ours: socket.socket, leg_id: str, stage: str, cached_tokens: int | None = None) -> None:
    """`cached_tokens`: of the leg's prompt, if that is known."""
    with contextlib.suppress(OSError):  # full, or the host is gone
        ours.send(f"{stage} {'' if cached_tokens is None else cached_tokens} {leg_id}".encode())


class StageListener:
    """The host's end; it must exist before the schedulers do."""

    def __init__(self, folder: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(str(folder / _NAME))
        self._loop: asyncio.AbstractEventLoop | None = None

    def listen(self, loop: asyncio.AbstractEventLoop, on_stage: Callable[[str, str, int | None], None]) -> None:
        """`on_stage(leg id, stage, cached tokens)` runs on the loop."""

        def readable() -> None:
            with contextlib.suppress(BlockingIOError):
                while True:
                    stage, cached, leg_id = self._socket.recv(_MESSAGE_BYTES).decode().split(" ", 2)
                    on_stage(leg_id, stage, int(cached) if cached else None)

        self._loop = loop
        loop.add_reader(self._socket.fileno(), readable)

    def close(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
