"""Counts the tokens that a choice reasons with, as SGLang's scheduler does: all up to the mark that ends reasoning.

Way:   output ids of a choice that was asked to think -> [ReasoningTokens] -> usage.completion_tokens_details
Out:   the mark's own tokens are counted; where it never comes, all tokens are
"""

from __future__ import annotations

from collections.abc import Sequence


class ReasoningTokens:
    """`end_ids`: the ids of the mark, without special tokens around it; empty: nothing is counted."""

    def __init__(self, end_ids: Sequence[int]) -> None:
        self._end_ids = list(end_ids)
        self._last: list[int] = []
        self._is_over = not self._end_ids
        self.count = 0

    def push(self, ids: Sequence[int]) -> None:
        if self._is_over:
            return
        for token_id in ids:
            self.count += 1
            self._last.append(token_id)
            if self._last[-len(self._end_ids) :] == self._end_ids:
                self._is_over = True
                return
        del self._last[: -len(self._end_ids)]
