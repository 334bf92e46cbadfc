"""The value that a share of some numbers do not exceed: of logs, of the page, of replays.

Way:   pulse.py, frontend/page/meter.py, replay/measures.py -> [quantile]
"""

from __future__ import annotations

from collections.abc import Sequence


def quantile(ordered: Sequence[float], share: float) -> float:
    """`ordered`: rising; of none, 0."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0
