"""The choices of an answer as their tokens come: text becomes parts, and parts become what an API says.

Way:   decode leg -> [StreamedChoice, WholeChoice] (each a Sink) -> parser -> parts -> StreamForm, or a ChoiceAnswer
In:    a choice's text as it may be shown, its token ids, its logprobs
Owns:  that the head goes with the first event, and the stream's end with the end of its last choice
Fails: what a parser raises ends its own request

(A stream of one choice that is nothing but text has a shorter way: sinks.Chunks.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from disagg.coordinator.request import FinishReason, Request
from disagg.frontend.exchange import Exchange
from disagg.frontend.parts import (
    Call,
    CallArguments,
    CallBegins,
    ChoiceAnswer,
    Content,
    Part,
    Reasoning,
    StreamForm,
)
from disagg.plane.messages import TokenLogprobs


class Parser(Protocol):
    """What reads a choice's text (disagg/frontend/output_parser.py)."""

    @property
    def to_read_again(self) -> int:
        """How many characters of a stream `end` reads, beside those that were held back."""

    def push(self, text: str) -> list[Part]: ...

    def end(self, reason: FinishReason) -> tuple[list[Part], str]:
        """What was held back, and why the choice ends once its calls are known."""


class _Plain:
    """Of a model whose text is its answer."""

    to_read_again = 0

    def push(self, text: str) -> list[Part]:
        return [Content(text)] if text else []

    def end(self, reason: FinishReason) -> tuple[list[Part], str]:
        return [], reason


PLAIN: Parser = _Plain()
SHORT_CHARACTERS = 2048  # parsers of tool calls read some hundred of them in a millisecond, the slowest fewer


class Gathered:
    """The parts of one choice so far, without a copy for each: an answer may have a hundred thousand."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[tuple[str, str, list[str]]] = []

    def add(self, parts: Sequence[Part]) -> None:
        for part in parts:
            match part:
                case Content():
                    self._texts.append(part.text)
                case Reasoning():
                    self._reasoning.append(part.text)
                case CallBegins():
                    self._calls.append((part.id, part.name, []))
                case CallArguments():
                    self._calls[part.index][2].append(part.text)

    def said(self, **more: Any) -> ChoiceAnswer:
        """A choice of these parts."""
        calls = [Call(call_id, name, "".join(arguments)) for call_id, name, arguments in self._calls]
        return ChoiceAnswer(text="".join(self._texts), reasoning="".join(self._reasoning), calls=calls, **more)

    def answer(self, index: int, request: Request, reason: str, echo: str, is_mute: bool) -> ChoiceAnswer:
        """`is_mute`: the client wants no token of the answer, but its prompt alone."""
        if is_mute:
            return ChoiceAnswer(
                index=index,
                text=echo,
                finish_reason="length",
                prompt_logprobs=request.prompt_logprobs or [],
            )
        if echo:
            self._texts.insert(0, echo)
        return self.said(
            index=index,
            finish_reason=reason,
            matched_stop=request.matched_stop,
            token_ids=request.emitted_ids,
            logprobs=request.logprobs,
            prompt_logprobs=request.prompt_logprobs or [],
            cached_tokens=request.facts.cached_tokens or 0,
        )


class WholeChoice:
    """Collects a choice, for an answer that is not streamed."""

    def __init__(
        self,
        index: int,
        request: Request,
        parser: Callable[[], Parser] = lambda: PLAIN,
        echo: str = "",
        is_mute: bool = False,
    ) -> None:
        self._index, self._request, self._new_parser, self._echo = index, request, parser, echo
        self._is_mute = is_mute
        self._parser, self._gathered = parser(), Gathered()
        self._characters = 0
        self._reason: FinishReason | None = None
        self.began = asyncio.Event()

    @property
    def is_long_to_read(self) -> bool:
        """Whether a parser has so much to read that others would feel it."""
        return self._parser is not PLAIN and self._characters > SHORT_CHARACTERS

    def is_open(self) -> bool:
        return True

    async def opens(self) -> None:
        pass

    def put(self, text: str, _token_ids: list[int]) -> None:
        self.began.set()
        self._characters += len(text)
        if not self._is_mute:
            self._gathered.add(self._parser.push(text))

    def end(self, text: str, token_ids: list[int], reason: FinishReason) -> None:
        self.put(text, token_ids)
        self._reason = reason

    def answer(self) -> ChoiceAnswer:
        """Once it has ended, and once. Its text is read here: in a thread, where it is long. Raises ParserFailed."""
        assert self._reason is not None, "the answer broke off without a reason"
        parts, end_reason = self._parser.end(self._reason)
        self._gathered.add(parts)
        return self._gathered.answer(self._index, self._request, end_reason, self._echo, self._is_mute)

    def forgets(self) -> bool:
        self._parser, self._gathered, self._characters = self._new_parser(), Gathered(), 0
        return True


class Stream:
    """The events of all choices of one answer. `usage`: OpenAI's object, once all have ended; `on_end` is called with
    each whole choice, before its client hears of its end."""

    def __init__(
        self,
        exchange: Exchange,
        form: StreamForm,
        choices: int,
        usage: Callable[[], dict[str, Any]],
        on_end: Callable[[ChoiceAnswer], None],
    ) -> None:
        self.call, self.form, self.on_end = exchange.call, form, on_end
        exchange.error_event = form.fails
        self._exchange, self._left, self._usage = exchange, choices, usage
        self._is_begun = False

    def write(self, events: bytes) -> None:
        if not events:
            return
        if self._is_begun:
            self.call.chunk_writer.write(events)
        else:
            self._is_begun = True
            self._exchange.write_events(events)

    def end_choice(self, events: bytes) -> None:
        self._left -= 1
        if self._left:
            self.write(events)
        else:
            self._exchange.write_events(events + self.form.ends(self._usage()), last=True)


class StreamedChoice:
    """`echo`: the prompt's text, which the answer is to begin with.

    An end whose text a parser has to read again, and at length, is left `unread`: others would feel it.
    """

    def __init__(
        self,
        stream: Stream,
        index: int,
        request: Request,
        parser: Parser = PLAIN,
        echo: str | None = None,
        is_mute: bool = False,
    ) -> None:
        self._stream, self._form, self._index, self._request = stream, stream.form, index, request
        self._parser, self._echo, self._is_mute = parser, echo, is_mute
        self._gathered = Gathered()
        self._told = 0  # tokens whose logprobs have been told
        self.unread: FinishReason | None = None  # it has ended, and what its parser says of that is to be asked yet
        self.began = asyncio.Event()

    def is_open(self) -> bool:
        return self._stream.call.chunk_writer.takes

    async def opens(self) -> None:
        await self._stream.call.writable()

    def put(self, text: str, token_ids: list[int]) -> None:
        self._stream.write(self._begin() + self._piece(self._parser.push(text), token_ids))

    def end(self, text: str, token_ids: list[int], reason: FinishReason) -> None:
        events = self._begin()
        parts = self._parser.push(text)
        if self._parser.to_read_again > SHORT_CHARACTERS:
            self._stream.write(events + self._piece(parts, token_ids))
            self.unread = reason
        else:
            more, end_reason = self._parser.end(reason)
            self._ends(events, [*parts, *more], token_ids, end_reason)

    def read_end(self) -> tuple[list[Part], str]:
        """Where it has ended `unread`: what `ends` is to tell. May run in a thread. Raises ParserFailed."""
        assert self.unread is not None, "its end was read, or has not come"
        return self._parser.end(self.unread)

    def ends(self, parts: list[Part], end_reason: str) -> None:
        self.unread = None
        self._ends(b"", parts, [], end_reason)

    def _ends(self, events: bytes, parts: list[Part], token_ids: list[int], end_reason: str) -> None:
        events += self._piece(parts, token_ids)
        answer = self._gathered.answer(self._index, self._request, end_reason, self._echo or "", self._is_mute)
        self._stream.on_end(answer)
        self._stream.end_choice(events + self._form.choice_ends(answer))

    def forgets(self) -> bool:
        return False

    def _begin(self) -> bytes:
        """With the first text: what opens the choice, and the prompt where it is asked for."""
        if self.began.is_set():
            return b""
        self.began.set()
        events = self._form.begins(self._index)
        if self._echo is not None:
            events += self._form.piece(self._index, [Content(self._echo)], [], self._request.prompt_logprobs or [])
        return events

    def _piece(self, parts: list[Part], token_ids: list[int]) -> bytes:
        if self._is_mute or not (parts or token_ids):
            return b""
        self._gathered.add(parts)
        logprobs = self._request.logprobs
        told: list[TokenLogprobs] = logprobs[self._told : self._told + len(token_ids)] if logprobs else []
        self._told += len(token_ids)
        return self._form.piece(self._index, parts, token_ids, told)
