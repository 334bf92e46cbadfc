"""What a frontend asks the controller to do: read an engine's log, which lies on the engine's node; drain an engine.

Way:   operator -> frontend -> [ControlClient] =frames=> [ControlServer] -> controller
In:    one question a connection, which is made for it; out: one answer, and the connection is closed
Fails: DeadlineExceeded when no answer has come within ANSWER_S, or nobody listens there
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from disagg.errors import DeadlineExceeded
from disagg.plane.framing import Connection
from disagg.plane.network import TCP, Listener

LogReader = Callable[[str, int], Awaitable[str | None]]  # (engine id, lines) -> text; None: no such engine
Drainer = Callable[[str, bool], Awaitable[str | None]]  # (engine id, start it again?) -> why not; None: it has begun
ANSWER_S = 10.0


class LogWanted(msgspec.Struct, frozen=True, tag="log?"):
    engine_id: str
    lines: int


class DrainWanted(msgspec.Struct, frozen=True, tag="drain?"):
    engine_id: str
    restart: bool


_encode = msgspec.msgpack.Encoder().encode
_decode_question = msgspec.msgpack.Decoder(LogWanted | DrainWanted).decode
_decode_answer = msgspec.msgpack.Decoder(str | None).decode  # log lines, or why an engine cannot be drained


class ControlServer:
    """Answers every frontend's questions through `read_log` and `drain`. Raises OSError when it cannot listen."""

    def __init__(self, secret: bytes, read_log: LogReader, drain: Drainer) -> None:
        self._secret, self._read_log, self._drain = secret, read_log, drain
        self._connections: dict[Connection, None] = {}
        self._listener: Listener | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, host: str) -> int:
        """Listens and returns the port."""
        self._listener = await TCP.listen(self._accept, host)
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
            case LogWanted(engine_id, lines):
                answer = self._read_log(engine_id, lines)
            case DrainWanted(engine_id, restart):
                answer = self._drain(engine_id, restart)
        task = asyncio.get_running_loop().create_task(self._answer(connection, answer), name="answer")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, connection: Connection, text: Awaitable[str | None]) -> None:
        connection.send(_encode(await text))


class ControlClient:
    """A frontend's way to the controller. `address`: host:port of its ControlServer."""

    def __init__(self, address: str, secret: bytes) -> None:
        self._address, self._secret = address, secret

    async def log_lines(self, engine_id: str, lines: int) -> str | None:
        """None: there is no such engine. Raises DeadlineExceeded."""
        return await self._ask(LogWanted(engine_id, lines))

    async def drain(self, engine_id: str, restart: bool) -> str | None:
        """Returns when draining has begun: None, or why it cannot. Raises DeadlineExceeded."""
        return await self._ask(DrainWanted(engine_id, restart))

    async def _ask(self, question: LogWanted | DrainWanted) -> str | None:
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def on_frame(body: bytes) -> None:
            if not answer.done():  # else it comes in the turn in which it is given up
                answer.set_result(body)

        def on_lost(why: str) -> None:
            if not answer.done():
                answer.set_exception(ConnectionError(why))

        connection = Connection(
            self._secret,
            is_server=False,
            on_open=lambda proven: proven.send(_encode(question)),
            on_frame=on_frame,
            on_lost=on_lost,
        )
        host, port = self._address.rsplit(":", 1)
        try:
            async with asyncio.timeout(ANSWER_S):
                await TCP.connect(lambda: connection, host, int(port))
                text: str | None = _decode_answer(await answer)
                return text
        except TimeoutError:
            what = f"the controller did not answer within {ANSWER_S:g} s"
            raise DeadlineExceeded("controller", what, "try again") from None
        except OSError as error:
            raise DeadlineExceeded("controller", f"the controller cannot be asked: {error}", "try again") from None
        finally:
            connection.close("it is answered, or given up")
