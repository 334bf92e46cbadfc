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


def depths(groups: list[Held]) -> dict[int, tuple[int, int]]:
    """Slot -> blocks in device memory, blocks in device or host memory. One entry for each slot: for few slots."""
    found: dict[int, tuple[int, int]] = {}
    for blocks, device, anywhere in reversed(groups):  # the shallowest first, so that a deeper one overrides it
        for slot in anywhere:
            found[slot] = (blocks if slot in device else found[slot][0] if slot in found else 0, blocks)
    return found
