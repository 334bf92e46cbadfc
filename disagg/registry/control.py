"""What a frontend asks the controller to do: read an engine's log, which lies on the engine's node; drain an engine;
look at a pair whose KV did not come; load or unload an adapter.

Way:   operator -> frontend -> [ControlClient] =frames=> [ControlServer] -> controller
In:    one question a connection, which is made for it; out: one answer, and the connection is closed
Fails: DeadlineExceeded when no answer has come within ANSWER_S (of an adapter ADAPTER_S), or nobody listens there
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from disagg.errors import DeadlineExceeded
from disagg.plane.framing import Connection
from disagg.registry.asked import ask
from disagg.registry.frame_server import FrameServer

LogReader = Callable[[str, int], Awaitable[str | None]]  # (engine id, lines) -> text; None: no such engine
Drainer = Callable[[str, bool], Awaitable[str | None]]  # (engine id, start it again?) -> why not; None: it has begun
OnTransferLost = Callable[[str, str], None]  # lives of a prefill and a decode
ANSWER_S = 10.0
NO_ADAPTERS = "this controller keeps no adapters"
ADAPTER_S = 400.0  # requests that run are waited for, then the engines


class AdapterKeeper(Protocol):
    """Each answer: None, or why it did not succeed."""

    async def load(self, name: str, path: str, pinned: bool) -> str | None: ...

    async def unload(self, name: str) -> str | None: ...


class LogWanted(msgspec.Struct, frozen=True, tag="log?"):
    engine_id: str
    lines: int


class DrainWanted(msgspec.Struct, frozen=True, tag="drain?"):
    engine_id: str
    restart: bool


class TransferLost(msgspec.Struct, frozen=True, tag="transfer lost"):
    prefill: str  # lives
    decode: str


class AdapterWanted(msgspec.Struct, frozen=True, tag="adapter"):
    name: str
    path: str
    pinned: bool


class AdapterUnwanted(msgspec.Struct, frozen=True, tag="no adapter"):
    name: str


Question = LogWanted | DrainWanted | TransferLost | AdapterWanted | AdapterUnwanted
_encode = msgspec.msgpack.Encoder().encode
_decode_question = msgspec.msgpack.Decoder(Question).decode
_decode_answer = msgspec.msgpack.Decoder(str | None).decode  # log lines, or why not


class ControlServer(FrameServer):
    """Answers every frontend's questions through `read_log`, `drain` and `adapters`, and hands on what it tells."""

    def __init__(
        self,
        secret: bytes,
        read_log: LogReader,
        drain: Drainer,
        on_transfer_lost: OnTransferLost,
        adapters: AdapterKeeper | None = None,
    ) -> None:
        super().__init__(secret)
        self._adapters = adapters
        self._read_log, self._drain, self._on_transfer_lost = read_log, drain, on_transfer_lost

    async def serve(self, connection: Connection, frames: asyncio.Queue[bytes]) -> None:
        match _decode_question(await frames.get()):
            case LogWanted(engine_id, lines):
                answer = await self._read_log(engine_id, lines)
            case DrainWanted(engine_id, restart):
                answer = await self._drain(engine_id, restart)
            case TransferLost(prefill, decode):
                answer = self._on_transfer_lost(prefill, decode)
            case AdapterWanted(name, path, pinned):
                answer = await self._adapters.load(name, path, pinned) if self._adapters else NO_ADAPTERS
            case AdapterUnwanted(name):
                answer = await self._adapters.unload(name) if self._adapters else NO_ADAPTERS
        connection.send(_encode(answer))


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

    async def transfer_lost(self, prefill: str, decode: str) -> None:
        """A request's KV did not come from the one life to the other. Raises DeadlineExceeded."""
        await self._ask(TransferLost(prefill, decode))

    async def load_adapter(self, name: str, path: str, pinned: bool) -> str | None:
        """Returns when every engine has it: None, or why it is nowhere. Raises DeadlineExceeded."""
        return await self._ask(AdapterWanted(name, path, pinned), ADAPTER_S)

    async def unload_adapter(self, name: str) -> str | None:
        """Returns when it is gone: None, or why not. Raises DeadlineExceeded."""
        return await self._ask(AdapterUnwanted(name), ADAPTER_S)

    async def _ask(self, question: Question, limit_s: float | None = None) -> str | None:
        limit_s = limit_s or ANSWER_S
        try:
            text: str | None = _decode_answer(await ask(self._address, self._secret, _encode(question), limit_s))
            return text
        except TimeoutError:
            what = f"the controller did not answer within {limit_s:g} s"
            raise DeadlineExceeded("controller", what, "try again") from None
        except OSError as error:
            raise DeadlineExceeded("controller", f"the controller cannot be asked: {error}", "try again") from None
