"""One choice's text, read by the model's parsers: what it reasons, what it tells the user, what it calls.

Way:   text of a choice, as it comes -> [OutputParser] -> [Part] -> the form of an API
In:    text cut anywhere; a request's ParsingPlan, which all its choices share
Out:   parts of which nothing is taken back. The reasoning first; what is left of the text is read for calls
Fails: ParserFailed, for whatever SGLang's parsers raise: this request ends, and no other

An answer that is not streamed is read whole, as SGLang's server reads it: its parsers of a stream leave blanks where
those of a whole text take them away (tests/frontend/test_output_parser.py has the list).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from disagg.errors import ParserFailed
from disagg.frontend.parts import CallArguments, CallBegins, Content, EndReason, Part, Reasoning
from disagg.sglang.parsers.reasoning import ReasoningReaders
from disagg.sglang.parsers.tools import CallPiece, ToolReaders, ToolText

CallId = Callable[[str, int], str]
# Models of these parsers read the ids of earlier calls in their prompt, and expect them to go on counting.
COUNTED_IDS = {"kimi_k2": "functions.{name}:{count}", "kimi_k3": "{name}:{count}"}


@dataclass(frozen=True, slots=True)
class ParsingPlan:
    """What reads a request's answer. `call_id`: of (name, index among its choice's calls)."""

    reasoning: ReasoningReaders | None = None  # None: none is set up, or separate_reasoning is false
    tools: ToolReaders | None = None
    call_id: CallId = lambda _name, _index: random_call_id()
    stream_reasoning: bool = True  # false: a stream's reasoning comes in one piece


def random_call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def call_ids(parser: str | None, earlier_calls: int) -> CallId:
    """`earlier_calls`: in the conversation so far."""
    form = COUNTED_IDS.get(parser or "")
    if form is None:
        return lambda _name, _index: random_call_id()
    return lambda name, index: form.format(name=name, count=earlier_calls + index)


class OutputParser:
    """Reads one choice: `push` any number of times, then `end` once."""

    def __init__(self, plan: ParsingPlan, *, is_stream: bool) -> None:
        self._plan, self._is_stream = plan, is_stream
        self._whole: list[str] = []
        self._held_reasoning: list[str] = []
        self._has_calls = False
        try:
            self._reasoning = plan.reasoning.reader() if plan.reasoning and is_stream else None
            self._tools = plan.tools.reader() if plan.tools and is_stream else None
        except Exception as error:
            raise _failed(error) from error

    @property
    def to_read_again(self) -> int:
        """How many characters `end` reads of what has been read: of a stream with tools all that its parser saw."""
        return self._tools.characters if self._tools is not None else 0

    def push(self, text: str) -> list[Part]:
        if not self._is_stream:
            self._whole.append(text)
            return []
        reasoning = ""
        try:
            if self._reasoning is not None:
                reasoning, text = self._reasoning.push(text)
            read = self._tools.push(text) if self._tools is not None and text else ToolText(text, [])
        except Exception as error:
            raise _failed(error) from error
        return self._parts(self._shown(reasoning, bool(text)), read)

    def end(self, reason: EndReason) -> tuple[list[Part], EndReason]:
        """What was held back, and the reason that the client is told."""
        try:
            reasoning, read = self._read_end() if self._is_stream else self._read_whole()
        except Exception as error:
            raise _failed(error) from error
        parts = self._parts(self._shown(reasoning, True), read)
        return parts, "tool_calls" if self._has_calls and reason == "stop" else reason

    def _read_end(self) -> tuple[str, ToolText]:
        reasoning, text = self._reasoning.end() if self._reasoning is not None else ("", "")
        if self._tools is None:
            return reasoning, ToolText(text, [])
        pushed = self._tools.push(text) if text else ToolText("", [])
        ended = self._tools.end()
        return reasoning, ToolText(pushed.text + ended.text, pushed.calls + ended.calls)

    def _read_whole(self) -> tuple[str, ToolText]:
        reasoning, text = "", "".join(self._whole)
        if self._plan.reasoning is not None:
            reasoning, text = self._plan.reasoning.whole(text)
        return reasoning, self._plan.tools.whole(text) if self._plan.tools is not None else ToolText(text, [])

    def _shown(self, reasoning: str, is_over: bool) -> str:
        """All of it once it is over, where the client wants it in one piece."""
        if self._plan.stream_reasoning or not self._is_stream:
            return reasoning
        self._held_reasoning.append(reasoning)
        if not is_over:
            return ""
        whole = "".join(self._held_reasoning)
        self._held_reasoning.clear()
        return whole

    def _parts(self, reasoning: str, read: ToolText) -> list[Part]:
        parts: list[Part] = []
        if reasoning:
            parts.append(Reasoning(reasoning))
        going_on = list(takewhile(lambda piece: piece.name is None, read.calls))  # with the call that is open
        parts += self._calls(going_on)
        if read.text:
            parts.append(Content(read.text))
        if read.calls:
            self._has_calls = True
            parts += self._calls(read.calls[len(going_on) :])
        return parts

    def _calls(self, pieces: Sequence[CallPiece]) -> Iterator[Part]:
        for piece in pieces:
            if piece.name is not None:
                yield CallBegins(piece.index, self._plan.call_id(piece.name, piece.index), piece.name)
            if piece.arguments:
                yield CallArguments(piece.index, piece.arguments)


def _failed(error: Exception) -> ParserFailed:
    """Where it failed is told by the type alone: what an error says may hold the client's text, and goes to the log."""
    what = "the model's answer could not be read: its parser failed"
    return ParserFailed(f"output parser, {type(error).__name__}", what, "ask again, or without tools")
