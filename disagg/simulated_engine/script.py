"""An answer that a test writes for a simulated engine: text, calls or JSON, where the usual tokens mean nothing.

Way:   a test -> Request.sampling["says"], ids in their order -> the simulated ranks, prefill's and decode's
Why:   as a model would, an engine goes on where the prompt it gets leaves off, so that a stream may move. One that has
       a grammar does not: its grammar stands at its beginning, whatever the prompt ends with
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from disagg.sampling import GRAMMARS


def is_at(sampling: Mapping[str, Any], prompt_ids: Sequence[int]) -> int:
    """How many of the ids that it is to say stand at the prompt's end already."""
    if any(name in sampling for name in GRAMMARS):
        return 0
    says = list(sampling["says"])
    counts = range(min(len(says), len(prompt_ids)), 0, -1)
    return next((count for count in counts if list(prompt_ids[-count:]) == says[:count]), 0)
