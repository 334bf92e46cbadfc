"""The form of coding-agent traces (callanjfox/kv-cache-tester, compact): a session a line, run as a closed loop.

Session: `id`, `block_size` (tokens of a block), `requests` in order. A request comes `think` seconds after the one
         before it has ended; its blocks are the first `lcp` of that one's, and the closed ranges of `new`. Ids are the
         session's own
Nested:  an entry with `requests` of its own is a sub-agent: it starts at `t` of the session's time, and runs beside it
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

from disagg.replay.traces.fields import Line
from disagg.replay.traces.trace import NOBODY, TraceRequest

FIELDS = {"id", "block_size", "requests"}


def requests(lines: Iterator[Line], block_tokens: int) -> Iterator[TraceRequest]:
    """Raises TraceError."""
    numbers = count()
    for index, line in enumerate(lines):
        tree = line.tree()
        if line.tokens_of(tree, "block_size") != block_tokens:
            raise line.wrong(f"block_size is {tree['block_size']}, and {block_tokens} in line 1", "give them apart")
        yield from _session(line, tree, f"{tree.get('id', index)}", index, numbers, block_tokens, NOBODY, 0.0)


def _session(
    line: Line,
    tree: dict[str, Any],
    name: str,
    index: int,
    numbers: Iterator[int],
    block_tokens: int,
    after: int,
    start_s: float,
) -> Iterator[TraceRequest]:
    """`start_s`: from the end of `after` to the first request."""
    entries = tree.get("requests")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise line.wrong("requests must be a list of objects")
    blocks: tuple[int, ...] = ()
    ended_s, is_first = 0.0, True
    for place, entry in enumerate(entries):
        if "requests" in entry:
            begins_s = start_s if is_first else max(0.0, line.number_of(entry, "t") - ended_s)
            nested = f"{name}/{place}"
            yield from _session(line, entry, nested, index, numbers, block_tokens, after, begins_s)
            continue
        prompt_tokens = max(1, line.tokens_of(entry, "in"))  # the next one comes after it, whatever became of it
        shared = line.tokens_of(entry, "lcp")
        if shared > len(blocks):
            raise line.wrong(f"request {place}: lcp is {shared}, and the one before has {len(blocks)} blocks")
        blocks = blocks[:shared] + tuple(_ids(line, entry, place, index))
        if len(blocks) * block_tokens < prompt_tokens:
            blocks += (_own(index, -place - 1),) * (-(-prompt_tokens // block_tokens) - len(blocks))
        number = next(numbers)
        at_s = line.number_of(entry, "t")
        think_s = max(0.0, at_s - ended_s) if entry.get("think") is None else line.number_of(entry, "think")
        served_s = 0.0 if entry.get("api") is None else line.number_of(entry, "api")  # neither is always known
        yield TraceRequest(
            number,
            start_s if is_first else think_s,
            prompt_tokens,
            max(1, line.tokens_of(entry, "out")),
            blocks[: -(-prompt_tokens // block_tokens)],
            session=name,
            after=after,
            served_s=served_s,
        )
        after, is_first = number, False
        ended_s = at_s + served_s


def _ids(line: Line, entry: dict[str, Any], place: int, session: int) -> Iterator[int]:
    ranges = entry.get("new")
    if not isinstance(ranges, list):
        raise line.wrong(f"request {place}: new must be a list of [first, last]")
    for each in ranges:
        if not (isinstance(each, list) and len(each) == 2 and all(type(end) is int for end in each)):
            raise line.wrong(f"request {place}: new has {each!r:.80}", "say [first, last]")
        yield from (_own(session, number) for number in range(each[0], each[1] + 1))


def _own(session: int, number: int) -> int:
    """No two sessions share a block."""
    return (session << 32) + number
