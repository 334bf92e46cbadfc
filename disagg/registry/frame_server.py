"""What the controller, and a frontend that has peers, listen with: connections of the plane's kind, and a task for each
that is proven.

Way:   a frontend's connection -> [FrameServer] -> `serve`, in a task that ends with the connection
Fails: OSError when it cannot listen
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod

from disagg.plane.doorstep import Doorstep
from disagg.plane.framing import Connection
from disagg.plane.network import TCP, Listener


class FrameServer(ABC):
    def __init__(self, secret: bytes) -> None:
        self._secret, self._doorstep = secret, Doorstep(type(self).__name__)
        self._listener: Listener | None = None
        self._serving: dict[Connection, asyncio.Task[None]] = {}

    @abstractmethod
    async def serve(self, connection: Connection, frames: asyncio.Queue[bytes]) -> None:
        """`frames`: what the peer sends. It sends the next one when it was told something, and holds one at most."""

    async def start(self, host: str) -> int:
        """Listens and returns the port."""
        self._listener = await TCP.listen(self._accept, host)
        return self._listener.port

    async def close(self) -> None:
        if self._listener is not None:
            self._listener.close()
        self._doorstep.close()
        for connection, serving in list(self._serving.items()):
            serving.cancel()
            connection.close("it stops")

    def _accept(self) -> Connection:
        frames: asyncio.Queue[bytes] = asyncio.Queue(1)
        connection = Connection(
            self._secret,
            is_server=True,
            on_open=lambda opened: self._opened(opened, frames),
            on_frame=frames.put_nowait,
            on_lost=lambda _why: self._lost(connection),
            doorstep=self._doorstep,
        )
        return connection

    def _opened(self, connection: Connection, frames: asyncio.Queue[bytes]) -> None:
        serving = self.serve(connection, frames)
        self._serving[connection] = asyncio.get_running_loop().create_task(serving, name="answer a frontend")

    def _lost(self, connection: Connection) -> None:
        serving = self._serving.pop(connection, None)
        if serving is not None:
            serving.cancel()
