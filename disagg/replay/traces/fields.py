"""Takes the fields of one line of a trace, and says what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from disagg.replay.traces.trace import TraceError

TOKENS_MAX = 1 << 24  # of one prompt or answer


class Line:
    """One line of a file, numbered from 1."""

    def __init__(self, path: Path, number: int, text: str) -> None:
        self.path, self.number, self.text = path, number, text

    def wrong(self, what: str, would_do: str = "") -> TraceError:
        return TraceError(f"{self.path}, line {self.number}", what, would_do)

    def tree(self) -> dict[str, Any]:
        """Raises TraceError unless it is a JSON object."""
        try:
            tree = msgspec.json.decode(self.text)
        except msgspec.DecodeError as error:
            raise self.wrong(f"is no JSON: {error}") from None
        if not isinstance(tree, dict):
            raise self.wrong("is no JSON object")
        return tree

    def number_of(self, tree: Mapping[str, Any], name: str) -> float:
        """From 0. Raises TraceError."""
        value = self._of(tree, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise self.wrong(f"{name} must be a number from 0, is {value!r:.80}")
        return value

    def tokens_of(self, tree: Mapping[str, Any], name: str) -> int:
        """A count of tokens from 0. Raises TraceError."""
        value = self._of(tree, name)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= TOKENS_MAX:
            raise self.wrong(f"{name} must be a count of tokens, is {value!r:.80}")
        return value

    def ids_of(self, tree: Mapping[str, Any], name: str) -> tuple[int, ...]:
        """Whole numbers. Raises TraceError."""
        value = self._of(tree, name)
        if not isinstance(value, list) or not all(type(each) is int for each in value):
            raise self.wrong(f"{name} must be a list of whole numbers, is {value!r:.80}")
        return tuple(value)

    def blocks_of(self, tree: Mapping[str, Any], prompt_tokens: int, block_tokens: int) -> tuple[int, ...]:
        """`hash_ids`, one for each block of the prompt. Raises TraceError."""
        ids = self.ids_of(tree, "hash_ids")
        wanted = -(-prompt_tokens // block_tokens)
        if len(ids) < wanted:
            raise self.wrong(
                f"has {len(ids)} hash_ids for a prompt of {prompt_tokens} tokens",
                f"blocks have {block_tokens} tokens, so there must be {wanted}",
            )
        return ids[:wanted]

    def _of(self, tree: Mapping[str, Any], name: str) -> Any:
        if name not in tree:
            raise self.wrong(f"has no {name}", f"it has {', '.join(map(str, tree)) or 'nothing'}")
        return tree[name]
