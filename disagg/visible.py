"""Text that others wrote, as a log or a terminal may show it: nothing in it moves the cursor, colours what follows,
turns the direction of a line, or looks like another entry.

Way:   logging -> [LogLines]; what a frontend answers a command -> [visible, all_visible] -> a terminal
Fails: never; what would harm is shown as its escape
"""

from __future__ import annotations

import logging
import re
from typing import Any

# Controls but for tab and line feed, and what Unicode has to end a line or to turn its direction.
_HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]")


def visible(text: str) -> str:
    """Lines stay lines."""
    return _HARMFUL.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: str) -> str:
    return visible(text).replace("\n", "\\n").replace("\t", " ")


def all_visible(tree: Any) -> Any:
    """Of JSON: every text in it, names too."""
    if isinstance(tree, str):
        return visible(tree)
    if isinstance(tree, dict):
        return {visible(name): all_visible(value) for name, value in tree.items()}
    return [all_visible(each) for each in tree] if isinstance(tree, list) else tree


class LogLines(logging.Formatter):
    """An entry's further lines (a traceback, what an engine said last) are indented, so that none looks like an entry
    of its own."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record)).replace("\n", "\n  ")
