"""Cuts an answer's text where its parser wants it cut, however it came: markers whole, and alone.

Way:   pieces of text, cut anywhere -> [Lexemes] -> units -> an SGLang parser
Out:   outside calls plain text goes on at once; what may be the beginning of a marker waits. Within calls every unit
       depends on the text alone, so that the same text gives the same calls
Owns:  the text that waits: less than a marker, and within calls a part of what the parser holds

SGLang's streaming parsers were written for pieces of one token each, in which a marker such as <tool_call> is whole.
Given half of one, or one with its neighbours, some of them lose a call.
"""

from __future__ import annotations

import re
from collections.abc import Callable

MARKER_CHARACTERS_MAX = 64
WORD_CHARACTERS_MAX = 16
# A parser that reads again all that it holds does so only when this part of it is new: its work is linear in the text.
NEW_PART = 16
HELD_FOR_ANY = 2048  # characters: beside more, what only looks like a marker (HTML, say) is text

_MARKER = r"<[^<>\s]{1,62}>|\[/?[A-Z_]{2,20}\]|◁/?think▷"
_UNIT = re.compile(rf"{_MARKER}|\w{{1,{WORD_CHARACTERS_MAX}}}|,\s?|\s|.", re.S)
_PLAIN = re.compile(rf"{_MARKER}|[^<\[\]{{}}◁]+|.", re.S)
_HALF_MARKER = re.compile(r"(?:<[^<>\s]{0,62}|\[/?[A-Z_]{0,20}|◁/?[a-z]{0,5})\Z")
_HALF_WORD = re.compile(r"(?:\w+|,)\Z")  # SGLang's separators of calls are `,` and `, `
_OPENERS = frozenset("<[]{}◁")
_IN_STRING = re.compile(rf"{_MARKER}|{_HALF_MARKER.pattern}|[<\[◁]|\\?\Z")
_JSON_STRING = re.compile(r'(?:[^"\\\x00-\x1f<\[◁]+|\\["\\bfnrt])*')
_RAW_STRING = re.compile(r"(?:[^<\]◁&]+|\](?=[^<\]])|<(?=[\s\d=]))*")


class Lexemes:
    """Units of one text. `take` gives the next, as its caller says anew each time whether a call is being read."""

    def __init__(self) -> None:
        self._waiting, self._position = "", 0
        self._unit: list[str] = []
        self._unit_characters = 0

    def push(self, text: str) -> None:
        self._waiting = self._waiting[self._position :] + text
        self._position = 0

    def take(
        self, held_characters: int, *, in_call: bool, is_mark: Callable[[str], bool] = bool, last: bool = False
    ) -> str | None:
        """None: what is here waits for more. `held_characters`: how much the parser would read again. `is_mark`: of a
        marker, whether the parser has to see it at once, however much it would read again."""
        while self._position < len(self._waiting):
            unit = self._next(in_call=in_call, last=last)
            if unit is None:
                break
            if not in_call:
                return self._with_gathered(unit)
            is_alone = is_marker(unit) and (held_characters < HELD_FOR_ANY or is_mark(unit))
            if is_alone and self._unit:  # what was gathered goes first, and the marker alone after it
                self._position -= len(unit)
                return self._gathered()
            self._unit.append(unit)
            self._unit_characters += len(unit)
            if self._unit_characters * NEW_PART >= held_characters or is_alone:
                return self._gathered()
        return self._gathered() if last and self._unit else None

    def take_string(self, *, is_json: bool, is_mark: Callable[[str], bool], last: bool) -> tuple[str, bool]:
        """Within a string that its parser only repeats: text that it need not see, and whether what follows is not
        such. `is_mark`: of a marker or the beginning of one, whether the parser has to see it."""
        text, begin = self._waiting, self._position
        if not is_json:
            matched = _RAW_STRING.match(text, begin)
            assert matched is not None
            taken = matched.group().rstrip()  # blanks at a value's end may be none of it
            self._position += len(taken)
            return taken, last or text[matched.end() :] not in ("", "<", "]")
        end, waits = begin, False
        while True:
            matched = _JSON_STRING.match(text, end)
            assert matched is not None
            end = matched.end()
            found = _IN_STRING.match(text, end)
            if found is None:
                break
            marker = found.group()
            waits = found.end() == len(text) and not is_marker(marker)
            if marker in ("", "\\") or ((waits or len(marker) > 1) and is_mark(marker)):
                break
            end += 1
        self._position = end
        return text[begin:end], last or not waits

    def _next(self, *, in_call: bool, last: bool) -> str | None:
        text, position = self._waiting, self._position
        if not in_call and position == 0 and _OPENERS.isdisjoint(text):
            self._position = len(text)
            return text
        match = (_UNIT if in_call else _PLAIN).match(text, position)
        assert match is not None  # either pattern takes any character
        unit = match.group()
        if not last:
            if unit[0] in "<[◁" and not is_marker(unit) and _HALF_MARKER.match(text, position):
                return None
            if in_call and match.end() == len(text) and len(unit) < WORD_CHARACTERS_MAX and _HALF_WORD.match(unit):
                return None
        self._position = match.end()
        return unit

    def _with_gathered(self, unit: str) -> str:
        if not self._unit:
            return unit
        self._position -= len(unit)
        return self._gathered()

    def _gathered(self) -> str:
        unit = "".join(self._unit)
        self._unit.clear()
        self._unit_characters = 0
        return unit


def is_marker(unit: str) -> bool:
    return len(unit) > 2 and unit[0] in "<[◁" and unit[-1] in ">]▷"
