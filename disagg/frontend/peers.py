"""What the frontends of a deployment ask each other: each knows its own requests alone.

Way:   together.py -> [Peers] =frames=> [PeerServer] of another frontend, its own.py
In:    where the others listen, from the registry; a request's id begins with the number of its frontend
Fails: a frontend that does not answer within ANSWER_S, as it has just ended, counts as one that knows nothing
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from disagg.frontend.keys import Caller
from disagg.frontend.page.others import Part
from disagg.plane.framing import Connection
from disagg.registry.asked import ask
from disagg.registry.frame_server import FrameServer
from disagg.registry.records import FrontendRecord
from disagg.telemetry.metrics import Figures

ANSWER_S = 2.0
NUMBER_DIGITS = 4  # of a request's id


class OwnStatus(msgspec.Struct, frozen=True):
    """`frontend`: its counts and what lives there; `in_flight`: life of an engine -> its requests there, by dp rank."""

    frontend: dict[str, Any]
    in_flight: dict[str, list[int]]


class TimelineWanted(msgspec.Struct, frozen=True, tag="timeline?"):
    request_id: str
    caller: Caller


class CancelWanted(msgspec.Struct, frozen=True, tag="cancel"):
    request_id: str
    caller: Caller


class ConversationWanted(msgspec.Struct, frozen=True, tag="conversation?"):
    response_id: str
    owner: bytes


class StatusWanted(msgspec.Struct, frozen=True, tag="status?"):
    owner: bytes | None  # as Backend.status


class PartWanted(msgspec.Struct, frozen=True, tag="part?"):
    owners: list[bytes | None]  # of the pages that look


class FiguresWanted(msgspec.Struct, frozen=True, tag="figures?"):
    pass


Question = TimelineWanted | CancelWanted | ConversationWanted | StatusWanted | FiguresWanted | PartWanted
_encode = msgspec.msgpack.Encoder().encode
_decode_question = msgspec.msgpack.Decoder(Question).decode
_timeline = msgspec.msgpack.Decoder(dict[str, Any] | None).decode
_cancelled = msgspec.msgpack.Decoder(bool | None).decode
_conversation = msgspec.msgpack.Decoder(list[dict[str, Any]] | None).decode
_status = msgspec.msgpack.Decoder(OwnStatus | None).decode
_part = msgspec.msgpack.Decoder(Part | None).decode
_figures = msgspec.msgpack.Decoder(Figures | None).decode
NOTHING = _encode(None)


class Own(Protocol):
    """What one frontend knows (own.py)."""

    def timeline(self, request_id: str, caller: Caller) -> dict[str, Any] | None: ...

    def cancel(self, request_id: str, caller: Caller) -> bool | None: ...

    def conversation(self, response_id: str, owner: bytes) -> list[dict[str, Any]] | None: ...

    def status(self, owner: bytes | None) -> OwnStatus: ...

    def figures(self) -> Figures: ...

    def part(self, owners: Sequence[bytes | None]) -> Part: ...


class PeerServer(FrameServer):
    def __init__(self, secret: bytes, own: Own) -> None:
        super().__init__(secret)
        self._own = own

    async def serve(self, connection: Connection, frames: asyncio.Queue[bytes]) -> None:
        connection.send(_encode(self._answer(_decode_question(await frames.get()))))

    def _answer(self, question: Question) -> object:
        own = self._own
        match question:
            case TimelineWanted(request_id, caller):
                return own.timeline(request_id, caller)
            case CancelWanted(request_id, caller):
                return own.cancel(request_id, caller)
            case ConversationWanted(response_id, owner):
                return own.conversation(response_id, owner)
            case StatusWanted(owner):
                return own.status(owner)
            case FiguresWanted():
                return own.figures()
            case PartWanted(owners):
                return own.part(owners)


class Peers:
    """Of frontend `number`. `frontends()`: all of the deployment, this one too, as the registry has them now."""

    def __init__(self, number: int, secret: bytes, frontends: Callable[[], Mapping[int, FrontendRecord]]) -> None:
        self.number, self._secret, self._frontends = number, secret, frontends

    def of(self, request_id: str) -> int | None:
        """The other frontend whose request that may be; None: it is this one's, or nobody's."""
        try:
            number = int(request_id[:NUMBER_DIGITS], 16)
        except ValueError:
            return None
        return number if number in self._others() else None

    async def timeline(self, number: int, request_id: str, caller: Caller) -> dict[str, Any] | None:
        found: dict[str, Any] | None = _timeline(await self._ask(number, TimelineWanted(request_id, caller)))
        return found

    async def cancel(self, number: int, request_id: str, caller: Caller) -> bool | None:
        is_cancelled: bool | None = _cancelled(await self._ask(number, CancelWanted(request_id, caller)))
        return is_cancelled

    async def conversation(self, number: int, response_id: str, owner: bytes) -> list[dict[str, Any]] | None:
        found: list[dict[str, Any]] | None = _conversation(
            await self._ask(number, ConversationWanted(response_id, owner))
        )
        return found

    async def statuses(self, owner: bytes | None) -> dict[int, OwnStatus | None]:
        """Of all others, by number; None: it does not answer."""
        answers = await self._ask_all(StatusWanted(owner))
        return {number: _status(answer) for number, answer in answers.items()}

    async def figures(self) -> list[Figures]:
        """Of all others that answer."""
        answers = map(_figures, (await self._ask_all(FiguresWanted())).values())
        return [figures for figures in answers if figures is not None]

    async def parts(self, owners: Sequence[bytes | None], limit_s: float) -> dict[int, Part | None]:
        """Of all others' pages, by number; None: it does not answer within the limit."""
        answers = await self._ask_all(PartWanted(list(owners)), limit_s)
        return {number: _part(answer) for number, answer in answers.items()}

    async def _ask(self, number: int, question: Question, limit_s: float | None = None) -> bytes:
        """NOTHING where it does not answer."""
        try:
            return await ask(self._others()[number].peer, self._secret, _encode(question), limit_s or ANSWER_S)
        except (OSError, TimeoutError, KeyError):
            return NOTHING

    async def _ask_all(self, question: Question, limit_s: float | None = None) -> dict[int, bytes]:
        """Side by side, by number."""
        numbers = sorted(self._others())
        answers = await asyncio.gather(*(self._ask(each, question, limit_s) for each in numbers))
        return dict(zip(numbers, answers, strict=True))

    def _others(self) -> dict[int, FrontendRecord]:
        return {number: each for number, each in self._frontends().items() if each.peer and number != self.number}
