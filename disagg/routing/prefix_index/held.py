"""What an index answers: how much of a prompt which ranks hold."""

from __future__ import annotations

from typing import NamedTuple


class Held(NamedTuple):
    """The slots that hold at least the first `blocks` blocks of a path.

    `device`: in device memory. `anywhere`: each of the blocks in device or host memory.
    """

    blocks: int
    device: frozenset[int]
    anywhere: frozenset[int]
