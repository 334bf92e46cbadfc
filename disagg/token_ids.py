"""A prompt's token ids, packed: four bytes each, where a list holds an object each.

Way:   reader of bodies -> CompletionRequest.prompts -> Request -> Submit -> engine's host -> Leg
Why:   of 100,000 ids, making a list's numbers, packing them and freeing them holds an event loop for 2.5 ms, in a
       frontend and in each host; a copy of 400 kB holds it for 0.05 ms (docs/performance.md)
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    TokenIds = array[int]
else:
    TokenIds = array  # which takes no [int] in Python 3.11, where msgspec looks at it


def packed(token_ids: Iterable[int]) -> TokenIds:
    """As uint32: OverflowError for an id that is none."""
    return array("I", token_ids)
