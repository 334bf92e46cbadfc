"""The tokenizer in the engines' hosts (`model.tokenization: engine`): this process has no library and no file of it.

Way:   bodies -> [EngineTokenizer] -> a host's text service (disagg/process/text_service.py) -> ids; an answer's text
       comes with its ids (disagg/tokenizer/given_text.py)
In:    connections to the engines; the host with the fewest bodies of ours is asked, in turn among equals
Owns:  what a host told of the model; the bytes of tokens that logprobs have named, at most the vocabulary; how many
       bytes of bodies each host has to read for us, at most READ_BYTES_MAX: more in a connection than its peer takes
       would end it, and with it all that runs there
Fails: NoReadyPair when for `no_pair_s` no host is connected; DeadlineExceeded after `request_s`; Overloaded when all
       hosts are busy; RequestError where no parser can be made for the model that the hosts have. Another host is asked
       when one is lost or busy; a refusal of the body is the client's
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import msgspec

from disagg.adapters import Served
from disagg.coordinator.limits import Limits
from disagg.errors import (
    BadRequest,
    DeadlineExceeded,
    LegLost,
    NoReadyPair,
    Overloaded,
    ReaderLost,
    RequestError,
    StartError,
)
from disagg.fields import Body
from disagg.frontend.parsing import NO_PARSERS, Parsing, parser_setup
from disagg.frontend.readers import answered, words_of
from disagg.frontend.reading import Read
from disagg.frontend.text_facts import FACTS, TextFacts
from disagg.frontend.tokenizing import Answered
from disagg.models.heads import Head
from disagg.plane import messages as m
from disagg.plane.client import PlaneClient
from disagg.routing.connections import Connections
from disagg.sglang.parsers.setup import AUTO
from disagg.tokenizer.given_text import GivenText

log = logging.getLogger(__name__)

T = TypeVar("T")
LOST_MAX = 4  # connections that may be lost under one body
AGAIN_S = 1.0  # between two tries to learn what there is to know, ahead of the first request
NOTHING = TextFacts(
    context_length=0,
    vocabulary=0,
    end_ids=frozenset(),
    head=Head(),
    template=None,
    added_tokens={},
    architecture="",
)
_AS_ERROR: dict[str, Callable[[str], RequestError]] = {
    m.TOO_COMPLEX: lambda detail: BadRequest(None, "too_complex", detail),
    m.LOST_READER: lambda detail: ReaderLost("reader", detail, "try again"),
}
_decode_facts = msgspec.msgpack.Decoder(TextFacts).decode


class EngineTokenizer:
    """Implements `disagg.frontend.tokenization.Tokenization`. `served`: what may be named now. Raises StartError for a
    parser that SGLang here does not have."""

    def __init__(
        self,
        connections: Connections,
        limits: Limits,
        served: Callable[[], Served],
        tool_parser: str | None = None,
        reasoning_parser: str | None = None,
    ) -> None:
        self._connections, self._limits, self._served = connections, limits, served
        self._parsers = tool_parser, reasoning_parser
        self._turns = itertools.count()
        self._token_bytes: dict[int, bytes] = {}
        self._being_read: Counter[str] = Counter()  # bytes, by the life of the host
        self._ahead: asyncio.Task[None] | None = None
        self._learning: asyncio.Task[None] | None = None
        self.facts: TextFacts | None = None
        self.parsing: Parsing = NO_PARSERS
        _check(tool_parser, reasoning_parser)

    async def ready(self) -> None:
        await self._bounded(self._known())

    async def read(self, data: bytes, endpoint: str) -> Read:
        return await self._bounded(self._read(data, endpoint))

    def answer_text(
        self, stop: tuple[str, ...], end_ids: frozenset[int], *, shows_stop: bool, shows_special: bool
    ) -> GivenText:
        wanted = m.TextWanted([] if shows_stop else sorted(end_ids), shows_special)
        return GivenText(stop, wanted, self._token_bytes, shows_stop=shows_stop)

    def token_text(self, token_id: int) -> tuple[str, bytes]:
        own_bytes = self._token_bytes[token_id]
        return own_bytes.decode(errors="replace"), own_bytes

    async def start(self) -> None:
        """Does not wait: engines need minutes. From their first host on, what there is to know is known."""
        self._ahead = asyncio.create_task(self._learn_ahead(), name="learn of the model's text side")

    async def stop(self) -> None:
        tasks = [task for task in (self._ahead, self._learning) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _learn_ahead(self) -> None:
        while self.facts is None:
            with contextlib.suppress(RequestError):
                await self._known()
                return
            await asyncio.sleep(AGAIN_S)

    async def _read(self, data: bytes, endpoint: str) -> Read:
        await self._known()
        return answered(await self._ask(data, words_of(endpoint, self._served())))

    async def _known(self) -> None:
        while self.facts is None:
            await asyncio.shield(self._learn_soon())

    def _learn_soon(self) -> asyncio.Task[None]:
        """Who comes while it is being asked waits for the same answer."""
        if self._learning is None or self._learning.done():
            self._learning = asyncio.create_task(self._learn(), name="ask a host of the model's text side")
            self._learning.add_done_callback(_heard)
        return self._learning

    async def _learn(self) -> None:
        if self.facts is not None:
            return
        facts = _decode_facts(await self._ask(b"", FACTS))
        try:
            setup = parser_setup(*self._parsers, facts)
        except StartError as error:
            raise RequestError("model", error.message) from error
        end_ids: list[int] = []
        if setup.marks is not None:
            body: Body = {"prompt": setup.marks.end, "add_special_tokens": False}
            read = answered(await self._ask(msgspec.json.encode(body), "tokenize"))
            assert isinstance(read, Answered)
            end_ids = msgspec.json.decode(read.body)["tokens"]
        self.parsing, self.facts = Parsing(setup, end_ids), facts

    async def _ask(self, data: bytes, words: str) -> bytes:
        """Of one host after the other, until one has read it."""
        busy: set[str] = set()
        lost: list[str] = []
        while True:
            life, client = await self._host(busy, lost, len(data))
            self._being_read[life] += len(data)
            try:
                said = await client.read(words, data)
            except LegLost as error:
                log.warning("%s: lost while it read a request: %s", life, error)
                lost.append(life)
                if len(lost) >= LOST_MAX:
                    raise
                continue
            finally:
                self._being_read -= Counter({life: len(data)})
            if said.failed == m.BUSY:
                busy.add(life)
                continue
            if said.failed:
                raise _AS_ERROR[said.failed](said.detail)
            return said.answer

    async def _host(self, busy: set[str], lost: list[str], size_bytes: int) -> tuple[str, PlaneClient]:
        """For a body of this size. Raises Overloaded and NoReadyPair."""
        try:
            async with asyncio.timeout(self._limits.no_pair_s):
                while True:
                    clients = self._connections.clients
                    full = {life for life in clients if life in busy or not self._has_room(life, size_bytes)}
                    found = [(life, client) for life, client in clients.items() if life not in full]
                    if found := [each for each in found if each[0] not in lost] or found:
                        first = next(self._turns) % len(found)
                        turned = found[first:] + found[:first]
                        return min(turned, key=lambda each: each[1].reading)
                    if full:
                        raise Overloaded("tokenization", "all engine hosts have many requests to read", "retry later")
                    await self._connections.connected()
        except TimeoutError:
            what, would_do = "no engines are ready to read this", "try again shortly; see /disagg/status"
            raise NoReadyPair("tokenization", what, would_do) from None

    def _has_room(self, life: str, size_bytes: int) -> bool:
        """For one alone there always is."""
        waiting_bytes = self._being_read[life]
        return not waiting_bytes or waiting_bytes + size_bytes <= m.READ_BYTES_MAX

    async def _bounded(self, step: Coroutine[Any, Any, T]) -> T:
        try:
            async with asyncio.timeout(self._limits.request_s):
                return await step
        except TimeoutError:
            what = "no engine host has read it within deadlines.request_s"
            raise DeadlineExceeded("tokenization", what) from None


def _check(tool_parser: str | None, reasoning_parser: str | None) -> None:
    """Imports the parsers and looks for their names, before anybody waits for it. What `auto` means is told later."""
    tools, reasoning = (None if name == AUTO else name for name in (tool_parser, reasoning_parser))
    parser_setup(tools, reasoning, NOTHING)


def _heard(task: asyncio.Task[None]) -> None:
    """Who waited for it has got its error, too."""
    if not task.cancelled():
        task.exception()
