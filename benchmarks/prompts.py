"""Prompts of a known length in tokens, no two alike, so that no cache of whole texts or prefixes helps anybody.

A text of N words is N tokens: the words are those that the tokenizer's vocabulary has whole, drawn as often as English
draws them (about one over the rank; a BPE vocabulary is ordered by frequency).
"""

from __future__ import annotations

import itertools
import json
import random
import re
from pathlib import Path

_WORD = re.compile("Ġ[a-z]{2,}")


class Prompts:
    def __init__(self, model_path: Path, seed: int) -> None:
        vocabulary: dict[str, int] = json.loads((model_path / "tokenizer.json").read_text())["model"]["vocab"]
        by_rank = sorted(vocabulary, key=vocabulary.__getitem__)
        self._words = [word[1:] for word in by_rank if _WORD.fullmatch(word)]
        self._weights = list(itertools.accumulate(1 / (rank + 10) for rank in range(len(self._words))))
        self._random = random.Random(seed)

    def texts(self, count: int, tokens: int) -> list[str]:
        drawn = self._random.choices(self._words, cum_weights=self._weights, k=count * tokens)
        return [" ".join(drawn[at : at + tokens]) for at in range(0, count * tokens, tokens)]


def random_prompts(seed: str, count: int, tokens: int, vocabulary: int) -> list[list[int]]:
    """Of token ids. No two begin alike: no prefix of one is cached for another."""
    choose = random.Random(seed)
    return [choose.choices(range(3, vocabulary), k=tokens) for _ in range(count)]
