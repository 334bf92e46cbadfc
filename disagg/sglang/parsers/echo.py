"""Finds out that a parser repeats a string as it comes: the rest of that string then goes by it, to its end.

Way:   what a parser was given, and which arguments it said -> [Echo.string] -> tools.py, lexemes.py
Out:   an OpenString: the parser stands in the value of an argument, and what it says of it is what it was given
Owns:  the end of either text, some thousand characters

SGLang's parsers read a call from its beginning for each new piece of it, so that a long string (a file that is written,
as a rule) costs more the longer it is, and has to be given in ever larger pieces. Of what stands inside a string they
need nothing: they would say it again. Without it they see a call whose string is short.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

CONTENT_CHARACTERS_MAX, GIVEN_CHARACTERS_MAX = 4096, 8192
CERTAIN_CHARACTERS = 24  # of a string whose way of being written is known
LEAST_CHARACTERS = 4
_SAID = re.compile(r'[^"\\]+|\\.|"|\\', re.S)
_JSON = re.compile(r'(?:[^"\\\x00-\x1f]|\\["\\bfnrt])*')  # what all write alike; not \u0041 and \/
_RAW = re.compile(r"[^<\]◁&]*")


class OpenString(NamedTuple):
    """`is_json`: the model writes it as JSON does; else as it is, between marks. `behind`: the parser was given it as
    the last of the string so far, and has not said it yet; as JSON."""

    is_json: bool
    behind: str


def in_json(text: str) -> str:
    """The text as it stands in a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


class Echo:
    """One choice's. `gave` and `said` in turns, as it happens; then `string`."""

    def __init__(self) -> None:
        self._given = ""
        self._content: str | None = None  # of the string that is open in what was said, or its end
        self._is_whole = self._is_value = False
        self._is_json: bool | None = None  # not known before the string was found once
        self._half, self._before = "", ""

    def gave(self, unit: str) -> None:
        self._given = (self._given + unit)[-GIVEN_CHARACTERS_MAX:]

    def begins(self) -> None:
        """A call's name was said."""
        self._content, self._half, self._before = None, "", ""

    def said(self, arguments: str) -> None:
        text, self._half = self._half + arguments, ""
        for match in _SAID.finditer(text):
            piece = match.group()
            if piece == "\\":
                self._half = piece
            elif piece == '"':
                self._turn()
            elif self._content is not None:
                self._content += piece
            elif said := piece.rstrip():
                self._before = said[-1]
        if self._content is not None and len(self._content) > CONTENT_CHARACTERS_MAX:
            self._content, self._is_whole = self._content[-CONTENT_CHARACTERS_MAX:], False

    def string(self) -> OpenString | None:
        """None where the parser is in no string, or it is not certain where in it."""
        content = self._content
        if content is None or not self._is_value or len(content) < LEAST_CHARACTERS or self._half:
            return None
        for is_json, wanted in self._wanted(content):
            at = self._given.find(wanted)
            if at < 0 or self._given.find(wanted, at + 1) >= 0:
                continue
            behind = self._given[at + len(wanted) :]
            is_plain = (_JSON if is_json else _RAW).fullmatch(behind) is not None and behind == behind.rstrip()
            # Blanks at an end may be dropped; letters beyond ASCII may be written as \u1234.
            if is_plain and (behind.isascii() or not wanted.isascii()):
                self._is_json = is_json
                return OpenString(is_json, behind if is_json else in_json(behind))
        return None

    def _wanted(self, content: str) -> Iterator[tuple[bool, str]]:
        """What would stand in the given text, and whether that is JSON: the string from its beginning, or its end."""
        if self._is_json is None:
            if not self._is_whole:
                return
            yield True, f'"{content}'
            if text := _read(content):
                yield False, f">{text}"
                yield False, f">\n{text}"
        elif self._is_json:
            yield True, content[-CERTAIN_CHARACTERS:]
        elif text := _read(content)[-CERTAIN_CHARACTERS:]:
            yield False, text

    def _turn(self) -> None:
        if self._content is None:
            self._content, self._is_whole, self._is_json = "", True, None
            self._is_value = self._before in (":", "[")
        else:
            self._content, self._before = None, '"'


def _read(content: str) -> Any:
    try:
        return json.loads(f'"{content}"', strict=False)
    except ValueError:  # cut within an escape
        return ""
