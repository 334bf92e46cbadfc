"""Qwen-Bailian's form: a JSON object a line, blocks of 16 tokens, arrivals in seconds, turns of a chat named.

A turn's `parent_chat_id` is the turn before it, -1 for the first one. All turns of a chat are one session.
"""

from __future__ import annotations

from collections.abc import Iterator

from disagg.replay.traces.fields import Line
from disagg.replay.traces.trace import TraceRequest

BLOCK_TOKENS = 16
FIELDS = {"chat_id", "parent_chat_id", "timestamp", "input_length", "output_length", "type", "turn", "hash_ids"}


def requests(lines: Iterator[Line]) -> Iterator[TraceRequest]:
    """Raises TraceError."""
    first_of: dict[int, int] = {}  # chat id -> that of its first turn
    for number, line in enumerate(lines):
        tree = line.tree()
        prompt_tokens = line.tokens_of(tree, "input_length")
        chat, parent = (_id(line, tree, name) for name in ("chat_id", "parent_chat_id"))
        first_of[chat] = first_of.get(parent, chat if parent < 0 else parent)
        yield TraceRequest(
            number,
            line.number_of(tree, "timestamp"),
            prompt_tokens,
            line.tokens_of(tree, "output_length"),
            line.blocks_of(tree, prompt_tokens, BLOCK_TOKENS),
            session=str(first_of[chat]),
        )


def _id(line: Line, tree: dict[str, object], name: str) -> int:
    value = tree.get(name)
    if type(value) is not int:
        raise line.wrong(f"{name} must be a whole number, is {value!r:.80}")
    return value
