"""What a frontend asks the controller to do: read an engine's log, which lies on the engine's node; drain an engine.

Way:   operator -> frontend -> [ControlClient] =frames=> [ControlServer] -> controller
In:    one numbered question a frame; out: one answer a question, in any order
Owns:  on the asking side its connection, made at the first question and again when it was lost
Fails: DeadlineExceeded when no answer has come within ANSWER_S, or nobody listens there
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable

import msgspec

from disagg.errors import DeadlineExceeded
from disagg.plane.framing import Connection
from disagg.plane.network import TCP, Listener, Network

LogReader = Callable[[str, int], Awaitable[str | None]]  # (engine id, lines) -> text; None: no such engine
Drainer = Callable[[str, bool], Awaitable[str | None]]  # (engine id, start it again?) -> why not; None: it has begun
ANSWER_S = 10.0


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
_decode_question = msgspec.msgpack.Decoder(LogWanted | DrainWanted).decode
_decode_answer = msgspec.msgpack.Decoder(Answer).decode


class ControlServer:
    """Answers every frontend's questions through `read_log` and `drain`. Raises OSError when it cannot listen."""

    def __init__(self, secret: bytes, read_log: LogReader, drain: Drainer, network: Network = TCP) -> None:
        self._secret, self._read_log, self._drain, self._network = secret, read_log, drain, network
        self._connections: dict[Connection, None] = {}
        self._listener: Listener | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, host: str) -> int:
        """Listens and returns the port."""
        self._listener = await self._network.listen(self._accept, host)
        return self._listener.port

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._listener is not None:
            self._listener.close()
        for connection in list(self._connections):
            connection.close("the controller stops")

    def _accept(self) -> Connection:
        connection = Connection(
            self._secret,
            is_server=True,
            on_open=lambda opened: self._connections.setdefault(opened),
            on_frame=lambda body: self._received(connection, body),
            on_lost=lambda _why: self._connections.pop(connection, None),
        )
        return connection

    def _received(self, connection: Connection, body: bytes) -> None:
        match _decode_question(body):
            case LogWanted(number, engine_id, lines):
                answer = self._read_log(engine_id, lines)
            case DrainWanted(number, engine_id, restart):
                answer = self._drain(engine_id, restart)
        task = asyncio.get_running_loop().create_task(self._answer(connection, number, answer), name="answer")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, connection: Connection, number: int, text: Awaitable[str | None]) -> None:
        connection.send(_encode(Answer(number, await text)))


class ControlClient:
    """A frontend's way to the controller. `address`: host:port of its ControlServer."""

    def __init__(self, address: str, secret: bytes, network: Network = TCP) -> None:
        self._address, self._secret, self._network = address, secret, network
        self._numbers = itertools.count()
        self._answers: dict[int, asyncio.Future[str | None]] = {}
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()

    async def log_lines(self, engine_id: str, lines: int) -> str | None:
        """None: there is no such engine. Raises DeadlineExceeded."""
        return await self._ask(LogWanted(next(self._numbers), engine_id, lines))

    async def drain(self, engine_id: str, restart: bool) -> str | None:
        """Returns when draining has begun: None, or why it cannot. Raises DeadlineExceeded."""
        return await self._ask(DrainWanted(next(self._numbers), engine_id, restart))

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close("closed here")

    async def _ask(self, question: LogWanted | DrainWanted) -> str | None:
        answer: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(ANSWER_S):
                connection = await self._connected()
                self._answers[question.number] = answer
                connection.send(_encode(question))
                return await answer
        except TimeoutError:
            what = f"the controller did not answer within {ANSWER_S:g} s"
            raise DeadlineExceeded("controller", what, "try again") from None
        except OSError as error:
            raise DeadlineExceeded("controller", f"the controller cannot be asked: {error}", "try again") from None
        finally:
            self._answers.pop(question.number, None)

    async def _connected(self) -> Connection:
        """The connection, proven; raises OSError when nobody listens there, or it was lost before it was proven."""
        async with self._connecting:
            if self._connection is None:
                opened: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
                making = self._make(opened)
                host, port = self._address.rsplit(":", 1)
                try:
                    await self._network.connect(lambda: making, host, int(port))
                    self._connection = await opened
                except BaseException:  # also a cancellation: no half-made connection stays behind
                    making.close("given up")
                    raise
            return self._connection

    def _make(self, opened: asyncio.Future[Connection]) -> Connection:
        def on_open(connection: Connection) -> None:
            if not opened.done():
                opened.set_result(connection)

        def on_lost(why: str) -> None:
            if opened.done():
                self._lost(why)
            else:
                opened.set_exception(ConnectionError(why))

        return Connection(self._secret, is_server=False, on_open=on_open, on_frame=self._received, on_lost=on_lost)

    def _lost(self, why: str) -> None:
        self._connection = None
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(ConnectionError(why))

    def _received(self, body: bytes) -> None:
        answer = _decode_answer(body)
        waiting = self._answers.get(answer.number)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer.text)
