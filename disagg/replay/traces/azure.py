"""Azure's form (AzurePublicDataset, LLM inference): a CSV of arrivals and lengths, without what prompts share."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from datetime import datetime

from disagg.replay.traces.fields import Line
from disagg.replay.traces.trace import TraceRequest

HEAD = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def requests(lines: Iterator[Line]) -> Iterator[TraceRequest]:
    """Raises TraceError."""
    next(lines, None)  # the head
    start: datetime | None = None
    for number, line in enumerate(lines):
        cells = next(csv.reader([line.text]))
        if len(cells) != len(HEAD):
            raise line.wrong(f"has {len(cells)} cells", f"each line has {', '.join(HEAD)}")
        at = _when(line, cells[0])
        start = start or at
        seconds = (at - start).total_seconds()
        if seconds < 0:
            raise line.wrong("is earlier than the first line")
        tree = {name: int(cell) if cell.isdigit() else cell for name, cell in zip(HEAD, cells, strict=True)}
        yield TraceRequest(number, seconds, line.tokens_of(tree, HEAD[1]), line.tokens_of(tree, HEAD[2]))


def _when(line: Line, text: str) -> datetime:
    whole, _, fraction = text.partition(".")
    try:
        return datetime.fromisoformat(f"{whole}.{fraction[:6]:0<6}")  # it has 7 digits after the point
    except ValueError:
        raise line.wrong(f"TIMESTAMP is {text!r:.80}", "say it as 2023-11-16 18:15:46.6805900") from None
