"""How long a regular expression could search at worst, told before a scheduler searches with it at each step.

Way:   `stop_regex` of a request -> sampling.py -> [complaint_about] -> SGLang's check of stop patterns
Why:   SGLang runs Python's `re` in the scheduler, over the newest tokens, after every token of the request. `(a+)+b`
       would hold up all requests of that engine for minutes, and then those of the next one that the request is sent to
Out:   patterns whose branches and repeats can be gone through in at most WAYS_MAX ways; what is repeated without end
       counts TAIL_TOKENS times, as no more than so many tokens are searched (disagg/sglang/plugins/grammar.py)
"""

from __future__ import annotations

import re
from re import _parser  # type: ignore[attr-defined]  # what SGLang reads the same patterns with
from typing import Any

TAIL_TOKENS = 32  # a token may have a hundred characters, and a search goes over all of them
WAYS_MAX = 1024
BYTES_MAX = 256  # SGLang's MAX_STOP_REGEX_LEN

_ONE_WAY = frozenset({"LITERAL", "NOT_LITERAL", "ANY", "IN", "CATEGORY", "RANGE", "AT"})


def complaint_about(pattern: str) -> str:
    """What follows the pattern's name in a sentence; "" where it may be searched for."""
    if len(pattern.encode()) > BYTES_MAX:
        return f"is longer than {BYTES_MAX} bytes"
    try:
        tree = _parser.parse(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return f"is no regular expression of Python's: {error}"
    try:
        ways = _ways(tree)
    except ValueError as error:
        return f"holds {error}, which cannot be searched for after each token"
    if ways > WAYS_MAX:
        return (
            f"could match in more than {WAYS_MAX} ways, and is searched for after each token: say {{0,20}} for * and +"
        )
    return ""


def _ways(sequence: Any) -> int:
    """In how many ways it can be gone through, at most; counted up to WAYS_MAX + 1. Raises ValueError."""
    ways = 1
    for operation, value in sequence:
        ways = min(ways * _ways_of(str(operation), value), WAYS_MAX + 1)
    return ways


def _ways_of(name: str, value: Any) -> int:
    if name in _ONE_WAY:
        return 1
    if name == "SUBPATTERN":
        return _ways(value[-1])
    if name == "BRANCH":
        return sum(_ways(branch) for branch in value[1])
    if name in ("MAX_REPEAT", "MIN_REPEAT"):
        least, most, body = value
        if body.getwidth()[0] == 0:
            raise ValueError("a repeat of what may be empty")
        if least > TAIL_TOKENS:
            raise ValueError(f"a repeat of at least {least}")
        least, most = min(least, TAIL_TOKENS), min(most, least + TAIL_TOKENS, 2 * TAIL_TOKENS)
        each, ways = _ways(body), 0
        for count in range(least, most + 1):
            ways += each**count
            if ways > WAYS_MAX:
                break
        return ways
    raise ValueError({"GROUPREF": "a reference to a group"}.get(name, f"a part of the kind {name.lower()}"))
