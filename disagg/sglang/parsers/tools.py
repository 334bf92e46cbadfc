"""One choice's tool calls, read by SGLang's parser of a name: as the text comes, or from the whole text.

Way:   text of a choice, its reasoning taken out -> [ToolReader] -> words and pieces of calls -> OutputParser
In:    text cut anywhere; lexemes.py cuts it as the parser wants it. Of a long string the parser gets the ends alone
Out:   calls counted from 0 as they come; a name first, then its arguments, of which nothing is taken back
Fails: whatever SGLang's parser raises; ValueError where it says of a string other than it was given; ImportError
       without SGLang

`whole` is SGLang's `parse_non_stream`, for answers that are not streamed. `end` compares what was streamed with what it
makes of all that the streaming parser was given, and adds what that one lost: some know only one call, or leave the
last brace out. That may take long, and may be asked for in a thread (`characters` says how many there are).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from disagg.sglang.parsers.detectors import Held, Marks, vocabulary
from disagg.sglang.parsers.echo import Echo, OpenString, in_json
from disagg.sglang.parsers.json_array import ArrayParser
from disagg.sglang.parsers.lexemes import Lexemes, is_marker
from disagg.sglang.parsers.light_import import sglang_parsers


class CallPiece(msgspec.Struct, frozen=True, gc=False):
    """`name` is None where a call goes on."""

    index: int
    name: str | None
    arguments: str


class ToolText(NamedTuple):
    """What the user reads, then what is called."""

    text: str
    calls: list[CallPiece]


class ToolReaders:
    """Makes the readers of one request's choices.

    `name` None, or `as_array`: calls are a JSON array, as a JSON schema made the engine write them.
    """

    def __init__(
        self,
        name: str | None,
        tools: Sequence[dict[str, Any]],
        added_tokens: Iterable[str] = (),
        *,
        as_array: bool = False,
    ) -> None:
        tool = sglang_parsers().tool
        self._name, self._as_array = name, as_array or name is None
        self._tools = [tool(**each) for each in tools]
        self._vocabulary = vocabulary(added_tokens)

    def reader(self) -> ToolReader:
        return ToolReader(self._parser)

    def whole(self, text: str) -> ToolText:
        """As SGLang reads it; where that finds no call after a marker, what a reader of the stream finds whole."""
        found = _whole(self._parser(), text)
        if found.calls or not self._parser().has_tool_call(text):
            return found
        reader = self.reader()
        pushed, ended = reader.push(text), reader.end()
        calls = _gathered(pushed.calls + ended.calls)
        return (
            ToolText(pushed.text + ended.text, calls) if calls and all(_is_json(c.arguments) for c in calls) else found
        )

    def _parser(self) -> Any:
        if self._as_array:
            return ArrayParser(self._tools)
        return sglang_parsers().function_call_parser(self._tools, self._name, self._vocabulary)


class ToolReader:
    """Reads one choice as it comes: `push` any number of times, then `end`."""

    def __init__(self, make_parser: Callable[[], Any]) -> None:
        self._make_parser, self._parser = make_parser, make_parser()
        self._held, self._lexemes = Held(self._parser.detector), Lexemes()
        self._marks, self._echo = Marks(self._parser.detector), Echo()
        self._string: OpenString | None = None  # what comes is of this string, and goes by the parser
        self._behind = ""  # of the last call's arguments: told already, and not yet said by the parser
        self._came: list[str] = []  # all that the parser was given, for the comparison at the end
        self.characters = 0  # of them
        self._before: list[str] = []  # text ahead of the first call
        self._after: list[str] = []  # text after it, which waits for the end: it may be a call that was not seen
        self._names: list[str] = []
        self._arguments: list[list[str]] = []
        self._index_of: dict[int, int] = {}  # SGLang's index of a call -> ours

    def push(self, text: str) -> ToolText:
        self._lexemes.push(text)
        return self._feed(last=False)

    def end(self) -> ToolText:
        text, calls = self._feed(last=True)
        if hasattr(self._parser, "parse_stream_end"):  # not in every release
            more_text, more_calls = self._said(*self._parser.parse_stream_end())
            text, calls = text + more_text, calls + more_calls
        calls += self._unstreamed()
        rest = self._rest()
        return ToolText(text + rest.text, calls + rest.calls)

    def _feed(self, *, last: bool) -> ToolText:
        texts: list[str] = []
        calls: list[CallPiece] = []
        held = self._held.characters()
        while not self._string or self._pass_by(calls, last=last):
            in_call = bool(held or self._names)
            unit = self._lexemes.take(held, in_call=in_call, is_mark=self._marks.has, last=last)
            if unit is None:
                break
            text, items = self._parser.parse_stream_chunk(unit)
            was_held, held = held, self._held.characters()
            if not (was_held or held or items or self._names or is_marker(unit)):
                text = unit  # plain text between nothing and nothing: some parsers take a bracket out of it
            self._came.append(unit)
            self.characters += len(unit)
            if was_held or held or self._names:
                self._echo.gave(unit)
            said = self._said(text, items)
            texts.append(said.text)
            calls += said.calls
            if said.calls:
                calls += self._goes_by()
        return ToolText("".join(texts), calls)

    def _goes_by(self) -> list[CallPiece]:
        """What of a string the parser has yet to say, where the rest of that string is to go by it."""
        string = self._echo.string()
        if string is None or not string.behind.startswith(self._behind):
            return []
        behind = string.behind[len(self._behind) :]
        self._string, self._behind = string, string.behind
        return [CallPiece(len(self._names) - 1, None, behind)] if behind else []

    def _pass_by(self, calls: list[CallPiece], *, last: bool) -> bool:
        """Whether the parser has to see what comes next."""
        assert self._string is not None
        is_json = self._string.is_json
        text, is_over = self._lexemes.take_string(is_json=is_json, is_mark=self._marks.has, last=last)
        if text:
            calls.append(CallPiece(len(self._names) - 1, None, text if is_json else in_json(text)))
        if is_over:
            self._string = None
        return is_over

    def _said(self, text: str | None, items: Sequence[Any]) -> ToolText:
        shown = "" if self._names else text or ""
        if text:
            (self._after if self._names else self._before).append(text)
        calls = []
        for item in items:
            if item.name:
                self._index_of[item.tool_index] = len(self._names)
                self._names.append(item.name)
                self._arguments.append([])
                self._behind = ""
                self._echo.begins()
            index = self._index_of.get(item.tool_index)
            if index is None:  # arguments of a call whose name was never said
                continue
            if item.name or item.parameters:
                calls += self._told(index, item.name or None, item.parameters or "")
        return ToolText(shown, calls)

    def _told(self, index: int, name: str | None, arguments: str) -> list[CallPiece]:
        """What the parser says of a call, but for what was told before it said so."""
        if arguments:
            self._arguments[index].append(arguments)
            if index == len(self._names) - 1:
                self._echo.said(arguments)
                arguments = self._beyond(arguments)
        return [CallPiece(index, name, arguments)] if name or arguments else []

    def _beyond(self, arguments: str) -> str:
        told = self._behind
        if not arguments.startswith(told[: len(arguments)]):
            raise ValueError("the parser says other arguments than it was given")
        self._behind = told[len(arguments) :]
        return arguments[len(told) :]

    def _unstreamed(self) -> list[CallPiece]:
        """What the parser has read of its last call, and not said: SGLang's server asks for it at the end, too."""
        detector = self._parser.detector
        read, said = detector.prev_tool_call_arr, detector.streamed_args_for_tool
        last = len(read) - 1
        if not 0 <= last < len(said) or last not in self._index_of:
            return []
        arguments = read[last].get("arguments", {})
        known = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        return self._more(self._index_of[last], known)

    def _more(self, index: int, known: str) -> list[CallPiece]:
        """What is known of a call's arguments beyond what was said; none where they differ, or are whole as said."""
        said = "".join(self._arguments[index])
        if known == said or not known.startswith(said) or _is_json(said):
            return []
        return self._told(index, None, known[len(said) :])

    def _rest(self) -> ToolText:
        """The calls that SGLang finds in all that was given and its streaming parser did not, and text after calls."""
        before, after = "".join(self._before), "".join(self._after)
        text, found = _whole(self._make_parser(), "".join(self._came))
        calls: list[CallPiece] = []
        for piece in found:
            if piece.index == len(self._names):
                self._names.append(str(piece.name))
                self._arguments.append([piece.arguments])
                self._behind = ""
                calls.append(piece)
            elif piece.name == self._names[piece.index]:
                calls += self._more(piece.index, piece.arguments)
            else:
                return ToolText(after, calls)
        if len(found) == len(self._names):
            if text.startswith(before):
                after = text[len(before) :]
            elif text.strip() == before.strip():
                after = ""
        return ToolText(after, calls)


def _whole(parser: Any, text: str) -> ToolText:
    if not parser.has_tool_call(text):
        return ToolText(text, [])
    rest, items = parser.parse_non_stream(text)
    calls = [CallPiece(index, item.name, item.parameters) for index, item in enumerate(items)]
    return ToolText(rest or "", calls)


def _gathered(pieces: Iterable[CallPiece]) -> list[CallPiece]:
    calls: list[CallPiece] = []
    for piece in pieces:
        if piece.name is not None:
            calls.append(piece)
        else:
            last = calls[piece.index]
            calls[piece.index] = CallPiece(last.index, last.name, last.arguments + piece.arguments)
    return calls


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
