"""Mooncake's form: a JSON object a line, blocks of 512 tokens, arrivals in milliseconds."""

from __future__ import annotations

from collections.abc import Iterator

from disagg.replay.traces.fields import Line
from disagg.replay.traces.trace import TraceRequest

BLOCK_TOKENS = 512
FIELDS = {"timestamp", "input_length", "output_length", "hash_ids"}


def requests(lines: Iterator[Line]) -> Iterator[TraceRequest]:
    """Raises TraceError."""
    for number, line in enumerate(lines):
        tree = line.tree()
        prompt_tokens = line.tokens_of(tree, "input_length")
        yield TraceRequest(
            number,
            line.number_of(tree, "timestamp") / 1e3,
            prompt_tokens,
            line.tokens_of(tree, "output_length"),
            line.blocks_of(tree, prompt_tokens, BLOCK_TOKENS),
        )
