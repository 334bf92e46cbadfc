"""The controller's registry for other processes: the whole table at each change, over an authenticated connection.

Way:   controller's MemoryRegistry -> [RegistryServer] =frames=> [RemoteRegistry] -> a frontend's EngineTable
Fails: when the connection ends, `watch` ends: the deployment's driver is gone, and so is the deployment
Also:  a frontend asks here for an engine's log lines, which lie on the engine's node (the controller knows the way),
       and hands on an operator's wish to drain an engine
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec

from disagg.errors import DeadlineExceeded
from disagg.plane.framing import Connection
from disagg.registry.memory import MemoryRegistry
from disagg.registry.records import EngineRecord

LogReader = Callable[[str, int], Awaitable[str | None]]  # (engine id, lines) -> text; None: no such engine
Drainer = Callable[[str, bool], Awaitable[str | None]]  # (engine id, start it again?) -> why not; None: it has begun
ANSWER_S = 10.0


class Table(msgspec.Struct, frozen=True, tag="table"):
    records: list[EngineRecord]


class LogWanted(msgspec.Struct, frozen=True, tag="log?"):
    number: int
    engine_id: str
    lines: int


class DrainWanted(msgspec.Struct, frozen=True, tag="drain?"):
    number: int
    engine_id: str
    restart: bool


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    """To the question of that number: log lines, or why an engine cannot be drained."""

    number: int
    text: str | None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Table | LogWanted | DrainWanted | Answer).decode


class RegistryServer:
    def __init__(self, registry: MemoryRegistry, secret: bytes, read_log: LogReader, drain: Drainer) -> None:
        self._registry, self._secret, self._read_log, self._drain = registry, secret, read_log, drain
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, host: str) -> int:
        """Listens, begins to publish, and returns the port."""
        self._server = await asyncio.get_running_loop().create_server(self._accept, host, 0)
        self._hold(self._publish())
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.close("the controller stops")

    def _accept(self) -> Connection:
        connection = Connection(
            self._secret,
            is_server=True,
            on_open=self._opened,
            on_frame=lambda body: self._received(connection, body),
            on_lost=lambda _why: self._connections.discard(connection),
        )
        return connection

    def _opened(self, connection: Connection) -> None:
        self._connections.add(connection)
        connection.send(self._table())

    def _received(self, connection: Connection, body: bytes) -> None:
        match _decode(body):
            case LogWanted(number, engine_id, lines):
                self._hold(self._answer(connection, number, self._read_log(engine_id, lines)))
            case DrainWanted(number, engine_id, restart):
                self._hold(self._answer(connection, number, self._drain(engine_id, restart)))

    async def _answer(self, connection: Connection, number: int, text: Awaitable[str | None]) -> None:
        connection.send(_encode(Answer(number, await text)))

    async def _publish(self) -> None:
        async for _ in self._registry.watch():
            for connection in self._connections:
                connection.send(self._table())

    def _table(self) -> bytes:
        return _encode(Table(list(self._registry.records.values())))

    def _hold(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class RemoteRegistry:
    """A frontend's view of the controller's registry; read only."""

    def __init__(self, address: str, secret: bytes) -> None:
        self._address, self._secret = address, secret
        self._tables: asyncio.Queue[dict[str, EngineRecord] | None] = asyncio.Queue()
        self._numbers = itertools.count()
        self._answers: dict[int, asyncio.Future[str | None]] = {}
        self._connection: Connection | None = None

    async def connect(self) -> None:
        host, port = self._address.rsplit(":", 1)
        async with asyncio.timeout(ANSWER_S):
            _, protocol = await asyncio.get_running_loop().create_connection(self._make, host, int(port))
        self._connection = protocol

    async def watch(self) -> AsyncIterator[dict[str, EngineRecord]]:
        while (table := await self._tables.get()) is not None:
            while not self._tables.empty() and table is not None:
                table = self._tables.get_nowait()  # only the newest matters
            if table is None:
                return
            yield table

    async def log_lines(self, engine_id: str, lines: int) -> str | None:
        """None: there is no such engine."""
        return await self._ask(lambda number: LogWanted(number, engine_id, lines))

    async def drain(self, engine_id: str, restart: bool) -> str | None:
        """Returns when draining has begun: None, or why it cannot."""
        return await self._ask(lambda number: DrainWanted(number, engine_id, restart))

    async def _ask(self, question: Callable[[int], LogWanted | DrainWanted]) -> str | None:
        assert self._connection is not None
        number = next(self._numbers)
        answer: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        self._connection.send(_encode(question(number)))
        try:
            async with asyncio.timeout(ANSWER_S):
                return await answer
        except TimeoutError:
            what = f"the controller did not answer within {ANSWER_S:g} s"
            raise DeadlineExceeded("registry", what, "try again") from None
        finally:
            del self._answers[number]

    def _make(self) -> Connection:
        return Connection(
            self._secret,
            is_server=False,
            on_open=lambda _connection: None,
            on_frame=self._received,
            on_lost=lambda _why: self._tables.put_nowait(None),
        )

    def _received(self, body: bytes) -> None:
        match _decode(body):
            case Table(records):
                self._tables.put_nowait({record.id: record for record in records})
            case Answer(number, text) if number in self._answers and not self._answers[number].done():
                self._answers[number].set_result(text)
