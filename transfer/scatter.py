"""Where the pieces of a measured transfer lie in a buffer, on either side.

Out:   contiguous: one piece. Scattered: one piece a page, shuffled differently on each side, no two of them adjacent on
       either side, so that nothing can be merged. This is how a long-used KV pool looks
"""

from __future__ import annotations

import random
from typing import NamedTuple


class Pieces(NamedTuple):
    """Offsets in a buffer, pairwise: piece i of ours goes to piece i of theirs."""

    ours: list[int]
    theirs: list[int]
    piece_bytes: int


def contiguous(size_bytes: int) -> Pieces:
    return Pieces([0], [0], size_bytes)


def scattered(size_bytes: int, page_bytes: int) -> Pieces:
    """Takes room for twice the size."""
    pages = -(-size_bytes // page_bytes)
    return Pieces(_every_other(pages, page_bytes, 1), _every_other(pages, page_bytes, 2), page_bytes)


def _every_other(pages: int, page_bytes: int, seed: int) -> list[int]:
    offsets = [2 * page * page_bytes for page in range(pages)]
    random.Random(seed).shuffle(offsets)
    return offsets
