"""Reads a trace in any of the forms that are public, gzipped or not; the first line tells which it is.

Fails: TraceError names the file, the line, and what is wrong with it
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path

from disagg.replay.traces import agentic, azure, bailian, mooncake
from disagg.replay.traces.fields import Line
from disagg.replay.traces.trace import Trace, TraceError, TraceRequest

GZIP = b"\x1f\x8b"
FORMS = "Mooncake's and Qwen-Bailian's JSON lines, Azure's CSV, sessions of agents"


def read_trace(path: Path) -> Trace:
    """Raises TraceError."""
    lines = _lines(path)
    first = next(lines, None)
    if first is None:
        raise TraceError(str(path), "is empty", f"give one of {FORMS}")
    every = chain([first], lines)
    if tuple(first.text.split(",")) == azure.HEAD:
        return _open(path, azure.requests(every), 0)
    fields = first.tree().keys()
    if fields >= bailian.FIELDS:
        return _open(path, bailian.requests(every), bailian.BLOCK_TOKENS)
    if fields >= mooncake.FIELDS:
        return _open(path, mooncake.requests(every), mooncake.BLOCK_TOKENS)
    if fields >= agentic.FIELDS:
        block_tokens = first.tokens_of(first.tree(), "block_size")
        if not block_tokens:
            raise first.wrong("block_size must be at least 1")
        return Trace(path.name, block_tokens, _some(path, agentic.requests(every, block_tokens)), is_closed=True)
    raise first.wrong(f"is of no known form; its fields are {', '.join(map(str, fields))}", f"give one of {FORMS}")


def _open(path: Path, requests: Iterator[TraceRequest], block_tokens: int) -> Trace:
    found = sorted(_some(path, requests), key=lambda request: request.at_s)
    return Trace(path.name, block_tokens, found, stamp_s=_stamp_s(found))


def _stamp_s(requests: list[TraceRequest]) -> float:
    """What arrivals were rounded to, where most share theirs with others; else 0."""
    stamps = sorted({request.at_s for request in requests})
    if len(stamps) < 2 or 2 * len(stamps) > len(requests):
        return 0.0
    return min(after - before for before, after in pairwise(stamps))


def _some(path: Path, requests: Iterator[TraceRequest]) -> list[TraceRequest]:
    """Without those of no prompt or no answer, as failed requests are written."""
    found = [request for request in requests if request.prompt_tokens and request.output_tokens]
    if not found:
        raise TraceError(str(path), "has no request with a prompt and an answer", f"give one of {FORMS}")
    return found


def _lines(path: Path) -> Iterator[Line]:
    """Lines that are not blank."""
    number = 0
    try:
        with path.open("rb") as file:
            is_gzipped = file.read(2) == GZIP
        with gzip.open(path, "rt", encoding="utf-8") if is_gzipped else path.open(encoding="utf-8") as text:
            for number, line in enumerate(text, 1):
                if line.strip():
                    yield Line(path, number, line.strip())
    except UnicodeDecodeError:
        raise TraceError(f"{path}, line {number + 1}", "is no text", f"give one of {FORMS}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise TraceError(f"{path}, after line {number}", f"cannot be read: {error}") from error
