"""Where connections come from: TCP, or (in a simulation) memory, with its delays and faults.

Way:   PlaneClient, PlaneServer, registry -> [Network] -> asyncio transports
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol


class Listener(Protocol):
    @property
    def port(self) -> int: ...

    def close(self) -> None:
        """Stops listening; what is connected stays so."""


class Network(Protocol):
    async def connect(self, make: Callable[[], asyncio.Protocol], host: str, port: int) -> None:
        """Calls `connection_made` on what `make` gives; raises OSError when nobody listens there."""

    async def listen(self, make: Callable[[], asyncio.Protocol], host: str, port: int = 0) -> Listener: ...


class TcpNetwork:
    async def connect(self, make: Callable[[], asyncio.Protocol], host: str, port: int) -> None:
        await asyncio.get_running_loop().create_connection(make, host, port)

    async def listen(self, make: Callable[[], asyncio.Protocol], host: str, port: int = 0) -> Listener:
        return _TcpListener(await asyncio.get_running_loop().create_server(make, host, port))


class _TcpListener:
    def __init__(self, server: asyncio.Server) -> None:
        self._server = server

    @property
    def port(self) -> int:
        return int(self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        self._server.close()


TCP = TcpNetwork()
