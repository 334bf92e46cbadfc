"""What SGLang's detectors ask of a tokenizer, and how much text one of them holds.

Way:   tools.py, reasoning.py, constraint.py -> [vocabulary, Held, accepted] -> a detector of SGLang
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any


class Vocabulary:
    """The one method of a tokenizer that detectors call: some models write their markers with a suffix of their own."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self._tokens = dict.fromkeys(tokens, 0)

    def get_vocab(self) -> dict[str, int]:
        return self._tokens


def vocabulary(tokens: Iterable[str]) -> Vocabulary | None:
    """None where nothing is known: detectors then take the markers without a suffix."""
    found = Vocabulary(tokens)
    return found if found.get_vocab() else None


class Held:
    """The longest text among a detector's fields, but for its markers: what it reads again at the next piece.

    Those that hold text later are empty at first.
    """

    def __init__(self, detector: Any) -> None:
        self._fields = vars(detector)
        self._names = [name for name, value in self._fields.items() if value is None or value == ""]

    def characters(self) -> int:
        most, fields = 0, self._fields
        for name in self._names:
            value = fields[name]
            if value and type(value) is str and len(value) > most:
                most = len(value)
        return most


class Marks:
    """The texts that a detector looks for, as far as its fields say: as they are, and as parts of patterns."""

    def __init__(self, detector: Any) -> None:
        self._texts = "\n".join(_texts(list(vars(detector).values())))

    def has(self, text: str) -> bool:
        """Whether it is one, or the beginning of one; or looks like a token of a model's own."""
        return text in self._texts or text[:2] in ("<|", "<｜") or text[0] in "[◁"


def _texts(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, re.Pattern):
            yield str(value.pattern).replace("\\", "")
        elif isinstance(value, list | tuple | set | frozenset):
            yield from _texts(value)


def markers(detector: Any) -> set[str]:
    """The texts that a detector is made to find."""
    return {value for value in vars(detector).values() if isinstance(value, str) and len(value) > 1}


def accepted(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those that this release's function takes: older releases know fewer."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in known}
