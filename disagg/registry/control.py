"""What a frontend asks the controller to do: read an engine's log, which lies on the engine's node; drain an engine;
look at a pair whose KV did not come; load or unload an adapter; change the deployment.

Way:   operator -> frontend -> [ControlClient] =frames=> [ControlServer] -> controller
In:    one question a connection, which is made for it; out: one answer, and the connection is closed
Fails: DeadlineExceeded when no answer has come within ANSWER_S (of an adapter ADAPTER_S, of a change
       CHANGE_S), or nobody listens there
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
from disagg.registry.orders import NO_CONTROLLER, Answer, Asked, Status

LogReader = Callable[[str, int], Awaitable[str | None]]  # (engine id, lines) -> text; None: no such engine
Drainer = Callable[[str, bool], Awaitable[str | None]]  # (engine id, start it again?) -> why not; None: it has begun
OnTransferLost = Callable[[str, str], None]  # lives of a prefill and a decode
ANSWER_S = 10.0
NO_ADAPTERS = "this controller keeps no adapters"
ADAPTER_S = 400.0  # requests that run are waited for, then the engines
CHANGE_S = 150.0  # the preflight looks at every node


class AdapterKeeper(Protocol):
    """Each answer: None, or why it did not succeed."""

    async def load(self, name: str, path: str, pinned: bool) -> str | None: ...

    async def unload(self, name: str) -> str | None: ...


class ChangeKeeper(Protocol):
    """Carries out what operators order (disagg/cluster/change/)."""

    async def ask(self, asked: Asked) -> Answer: ...

    def status(self, show: int) -> Status: ...


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


class ChangeWanted(msgspec.Struct, frozen=True, tag="change"):
    asked: Asked


class ChangesWanted(msgspec.Struct, frozen=True, tag="changes?"):
    show: int  # the revision whose configuration is asked for; 0: none


Question = LogWanted | DrainWanted | TransferLost | AdapterWanted | AdapterUnwanted | ChangeWanted | ChangesWanted
_encode = msgspec.msgpack.Encoder().encode
_decode_question = msgspec.msgpack.Decoder(Question).decode
_decode_answer = msgspec.msgpack.Decoder(str | None).decode  # log lines, why not, or one of these as JSON
_decode_change = msgspec.json.Decoder(Answer).decode
_decode_status = msgspec.json.Decoder(Status).decode


class ControlServer(FrameServer):
    """Answers every frontend's questions through `read_log`, `drain` and `adapters`, and hands on what it tells."""

    def __init__(
        self,
        secret: bytes,
        read_log: LogReader,
        drain: Drainer,
        on_transfer_lost: OnTransferLost,
        adapters: AdapterKeeper | None = None,
        changes: ChangeKeeper | None = None,
    ) -> None:
        super().__init__(secret)
        self._adapters, self._changes = adapters, changes
        self._read_log, self._drain, self._on_transfer_lost = read_log, drain, on_transfer_lost

    async def serve(self, connection: Connection, frames: asyncio.Queue[bytes]) -> None:
        answer: str | None
        match _decode_question(await frames.get()):
            case LogWanted(engine_id, lines):
                answer = await self._read_log(engine_id, lines)
            case DrainWanted(engine_id, restart):
                answer = await self._drain(engine_id, restart)
            case TransferLost(prefill, decode):
                self._on_transfer_lost(prefill, decode)
                answer = None
            case AdapterWanted(name, path, pinned):
                answer = await self._adapters.load(name, path, pinned) if self._adapters else NO_ADAPTERS
            case AdapterUnwanted(name):
                answer = await self._adapters.unload(name) if self._adapters else NO_ADAPTERS
            case ChangeWanted(asked):
                answer = _as_json(await self._changes.ask(asked) if self._changes else NO_CONTROLLER)
            case ChangesWanted(show):
                answer = _as_json(self._changes.status(show) if self._changes else Status())
        connection.send(_encode(answer))


def _as_json(told: Answer | Status) -> str:
    return msgspec.json.encode(told).decode()


class ControlClient:
    """A frontend's way to the controller. `address`: host:port of its ControlServer, now."""

    def __init__(self, address: Callable[[], str], secret: bytes) -> None:
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

    async def change(self, asked: Asked) -> Answer:
        """What would be done, or is being done from now on. Raises DeadlineExceeded."""
        return _decode_change(await self._ask(ChangeWanted(asked), CHANGE_S) or b"{}")

    async def changes(self, show: int) -> Status:
        """`show`: the revision whose configuration is wanted, too; 0: none. Raises DeadlineExceeded."""
        return _decode_status(await self._ask(ChangesWanted(show)) or b"{}")

    async def _ask(self, question: Question, limit_s: float | None = None) -> str | None:
        limit_s = limit_s or ANSWER_S
        try:
            text: str | None = _decode_answer(await ask(self._address(), self._secret, _encode(question), limit_s))
            return text
        except TimeoutError:
            what = f"the controller did not answer within {limit_s:g} s"
            raise DeadlineExceeded("controller", what, "try again") from None
        except OSError as error:
            would_do = (
                "try again; of a detached deployment whose controller is dead, `disagg serve --detach CONFIG` starts "
                "another one, and `disagg stop CONFIG` ends it without"
            )
            raise DeadlineExceeded("controller", f"the controller cannot be asked: {error}", would_do) from None
